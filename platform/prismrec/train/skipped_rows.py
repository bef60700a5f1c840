"""What the ranks passed over because it cannot be decoded, in one list for all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.distributed as dist

from prismrec.data.ledger import Ledger
from prismrec.train.feed import RunRows


class SkippedRows:
    """Row groups and files that cannot be decoded, of all ranks and splits.

    Args:
        splits: what this rank reads.
        is_allowed: whether the recipe lets them pass (`data.on_bad_file = "skip"`); else there are
            none, and the ranks do not speak about it.
    """

    def __init__(self, splits: RunRows, *, is_allowed: bool) -> None:
        self._splits = splits
        self._is_allowed = is_allowed
        self.found: list[dict[str, Any]] = []
        """As of the last `collect`: split, file, row group, rows and reason of each; a file that is
        left out as a whole has neither split nor row group."""

    def collect(self, ledger: Ledger) -> None:
        """Bring the list up to date, and tell the ledger which rows count for nothing.

        Collective: every rank calls it.
        """
        if not self._is_allowed:
            return
        own = self._splits.skipped()
        every = [own]
        if self._splits.ranks.world_size > 1:
            every = [own] * self._splits.ranks.world_size
            dist.all_gather_object(every, own)
        merged = {(e["split"], e["file"], e["row_group"]): e for part in every for e in part}
        left_out = self._splits.source.left_out
        self.found = [
            *({"file": name, "why": why} for name, why in sorted(left_out.items())),
            *(merged[key] for key in sorted(merged)),
        ]
        for each in merged.values():
            if each["split"] == "train":
                ledger.skip(each["file"], each["row_group"], each["rows"])

    def metrics(self, ledger: Ledger) -> dict[str, float]:
        """Rows and row groups passed over, by split, and files left out; nothing where there are none.

        Collective: every rank calls it.
        """
        self.collect(ledger)
        totals: Counter[str] = Counter()
        for each in self.found:
            if "split" not in each:
                totals["data/left_out_files"] += 1
                continue
            totals[f"data/skipped_row_groups/{each['split']}"] += 1
            totals[f"data/skipped_rows/{each['split']}"] += each["rows"]
        return {name: float(count) for name, count in totals.items()}
