"""Embedding tables: sets and their layout, placement, optimizers, access to local shards."""
