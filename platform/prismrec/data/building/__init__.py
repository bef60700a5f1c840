"""Making a data set out of Parquet files of any columns: joins, ids, splits by time, even row groups."""
