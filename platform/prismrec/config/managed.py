"""What a table of managed ids cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from prismrec.config.embedding import EmbeddingSection, TableOptions
from prismrec.config.ids import ManagedIds


def managed_problems(section: EmbeddingSection, options: TableOptions) -> Iterator[str]:
    """Why a table's options do not go with managed ids, each from the key on; nothing if they do.

    Args:
        section: `[embedding]`, whose options hold where the table has none of its own.
        options: the table's.
    """
    if not isinstance(options.ids, ManagedIds):
        return
    layout, kind = options.layout or section.layout, options.sharding or section.sharding
    if layout not in ("auto", "packed"):
        yield f"layout: a table of managed ids is 'packed', got '{layout}'; set it for this table"
    if kind not in ("auto", "row_wise"):
        yield (
            f"sharding: a table of managed ids is cut 'row_wise', got '{kind}'; set it for this table"
        )
    if (options.kernel or section.kernel) == "fused_uvm_caching":
        yield (
            "kernel: rows of managed ids change their owners in the memory behind the cache; use "
            "'fused' or 'fused_uvm'"
        )
    if options.unknown_rows != 1:
        yield (
            "unknown_rows: a table of managed ids has one unknown row for each of data.lanes; leave "
            "it at 1"
        )
    if section.ranks_per_copy is not None:
        yield (
            "ids: with embedding.ranks_per_copy each copy of the table would give a row to another "
            "id; leave ranks_per_copy out or use ids = 'hash'"
        )
