"""Checkpoints: sharded safetensors files and a manifest, saved in the background, restored anywhere.

What is stored are logical tensors, `table/set/weight` and `table/set/<state>`, cut into blocks; the
form knows no layout, plan or number of ranks.
"""

from prismrec.checkpoint.directory import Retention, best, latest
from prismrec.checkpoint.manifest import Manifest, read_manifest
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.checkpoint.restore import read_dense, read_table, restore, table_shapes, verify
from prismrec.checkpoint.save import Checkpointer
from prismrec.checkpoint.snapshot import Snapshot, capture

__all__ = [
    "CheckpointReader",
    "Checkpointer",
    "Manifest",
    "Retention",
    "Snapshot",
    "best",
    "capture",
    "latest",
    "read_dense",
    "read_manifest",
    "read_table",
    "restore",
    "table_shapes",
    "verify",
]
