"""prismrec trains ads and recommendation ranking models with sharded embeddings."""

__version__ = "0.1.0"
