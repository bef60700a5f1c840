"""Writing files of codes; `prismrec.data.encode.semantic` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismrec.config import UserError
from prismrec.data.encode.ids import Ints
from prismrec.data.encode.semantic import CODE, FACTS, Codes, code_facts, read_codes

RANK = "rank"
"""Column that tells ids with equal codes apart: an id's place among them. It means nothing else, and no
table has rows for it."""


def write_codes(
    out: Path,
    ids: Ints,
    codes: Codes,
    sizes: Sequence[int],
    facts: Mapping[str, Any],
    ranks: Ints | None = None,
) -> None:
    """Write a file of codes, in the order of the ids; it appears whole or not at all.

    Args:
        out: the Parquet file; one that is there is replaced.
        ids: (n,) distinct.
        codes: (n, L) from 0 to the level's size, that not among them.
        sizes: (L,) codes of every level.
        facts: what else is said of the codes. `codebooks` has to be there: any text that is
            equal where equal codes mean the same.
        ranks: (n,) see `RANK`; no such column if not given.

    Raises:
        UserError: an id is there twice, or a code is none of its level.
    """
    names = [f"{CODE}{level}" for level in range(len(sizes))]
    columns = {name: pa.array(codes[:, level], pa.int32()) for level, name in enumerate(names)}
    if ranks is not None:
        columns[RANK] = pa.array(ranks, pa.int32())
    table = pa.table({"id": pa.array(ids, pa.int64()), **columns}).sort_by("id")
    said = json.dumps({**facts, "sizes": list(sizes)})
    table = table.replace_schema_metadata({FACTS: said.encode()})
    read_codes(table, code_facts(table.schema, str(out), "codes"), str(out), "codes")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        pq.write_table(table, draft, compression="zstd")
        draft.replace(out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror}; choose another file"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
