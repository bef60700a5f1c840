"""Checkpoints: sharded safetensors files and a manifest, saved in the background, restored anywhere.

What is stored are logical tensors, `table/set/weight` and `table/set/<state>`, cut into blocks; the
form knows no layout, plan or number of ranks.
"""

from prismrec.checkpoint.directory import Retention, best, latest
from prismrec.checkpoint.manifest import Conversion, Manifest, read_manifest
from prismrec.checkpoint.maps import restore_maps, row_owners
from prismrec.checkpoint.reader import CheckpointReader
from prismrec.checkpoint.restore import (
    Restored,
    read_dense,
    read_table,
    restore,
    table_shapes,
    verify,
)
from prismrec.checkpoint.row_state import (
    describe_conversions,
    latest_conversions,
    merge_conversions,
)
from prismrec.checkpoint.save import Checkpointer
from prismrec.checkpoint.snapshot import Snapshot, capture

__all__ = [
    "CheckpointReader",
    "Checkpointer",
    "Conversion",
    "Manifest",
    "Restored",
    "Retention",
    "Snapshot",
    "best",
    "capture",
    "describe_conversions",
    "latest",
    "latest_conversions",
    "merge_conversions",
    "read_dense",
    "read_manifest",
    "read_table",
    "restore",
    "restore_maps",
    "row_owners",
    "table_shapes",
    "verify",
]
