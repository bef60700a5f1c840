"""Rows on their way from Parquet to a batch: schema, reader, lanes, ids, adapters, synthetic world."""
