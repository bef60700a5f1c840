"""Codes of items that are drawn, in the place of the fitted ones that a recipe names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prismrec.config import load
from prismrec.config.ids import SemanticIds
from prismrec.data.semantic.files import write_codes

ITEMS, SIZES = 200, (4, 4, 4)


def drawn_codes(path: Path, place: Path) -> list[str]:
    """Write codes for every table of semantic ids of a recipe into a directory; what to override."""
    overrides = []
    for name, table in load(path).embedding.tables.items():
        if isinstance(table.ids, SemanticIds):
            file = place / "_codes" / f"{name}.parquet"
            codes = np.random.default_rng(1).integers(0, SIZES, (ITEMS, len(SIZES)))
            write_codes(file, np.arange(ITEMS), codes.astype(np.int32), SIZES, {"codebooks": ""})
            overrides.append(f"embedding.tables.{name}.ids.path='{file}'")
    return overrides
