"""Which id has which row: the map of one shard of a managed table.

Notation: L ids of a lookup, b buckets of the shard, r rows of a bucket, R = b * r rows of the shard.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.config.ids import ManagedIds
from prismrec.data.encode.codes import bucket_span, missing_code
from prismrec.embeddings.managed.newcomers import EMPTY, Newcomers, Seen

BYTES_PER_ROW = 40
"""Memory of the map for each row: code, count, last step, and the codes in order with their rows."""

MIN_NEWCOMERS = 1 << 16
"""A shard remembers as many new ids between two admissions as it has rows, and at least this many."""


@dataclass(frozen=True, slots=True)
class MapPart:
    """The part of a table that one map is responsible for.

    Args:
        buckets: buckets of the whole table.
        bucket_rows: r, the row of the ids without one included.
        first: the part's first bucket.
        count: b.
    """

    buckets: int
    bucket_rows: int
    first: int
    count: int

    @property
    def rows(self) -> int:
        """R."""
        return self.count * self.bucket_rows


@dataclass(frozen=True, slots=True)
class Change:
    """Rows that have another owner since an admission.

    Args:
        rows: (n,) rows of the shard, each once.
        codes: (n,) their new owners, `EMPTY` where a row has none now.
    """

    rows: Tensor
    codes: Tensor


@dataclass(slots=True)
class Counters:
    """What happened to a table's ids since the numbers were last taken.

    Args:
        lookups: ids looked up in training.
        misses: of these, how many had no row; (1,) on the map's device.
        admissions: ids that were given a row.
        evictions: ids that lost theirs.
        dropped: lookups of new ids that were forgotten because too many had to be remembered.
    """

    lookups: int
    misses: Tensor
    admissions: int
    evictions: int
    dropped: int


class IdMap:
    """Ids and rows of one shard of a managed table.

    Bucket k of the shard has the rows from `k * r` on, the last of which is looked up by the ids of
    the bucket that have no row. Everything happens bucket by bucket, so that it does not depend on
    the number of shards. Between two admissions nothing waits for the device.

    Args:
        options: who is given a row and who loses it.
        part: the buckets and rows.
        device: where the map lies.
        max_newcomers: new ids remembered between two admissions; by default as many as there are
            rows, and at least `MIN_NEWCOMERS`.

    Attributes:
        codes: (b, r) owner of each row, `EMPTY` where it has none.
        counts: (b, r) how often the owner was seen; for a bucket's last row, its misses.
        last_seen: (b, r) step at which the owner was last seen.
        newcomers: ids without a row seen since the last admission.
    """

    def __init__(
        self,
        options: ManagedIds,
        part: MapPart,
        device: torch.device,
        max_newcomers: int | None = None,
    ) -> None:
        self.part = part
        self._options = options
        self._span = bucket_span(part.buckets)
        self._missing = missing_code(part.buckets)
        shape = (part.count, part.bucket_rows)
        self.codes = torch.full(shape, EMPTY, dtype=torch.int64, device=device)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self.last_seen = torch.zeros(shape, dtype=torch.int64, device=device)
        limit = max(part.rows, MIN_NEWCOMERS) if max_newcomers is None else max_newcomers
        self.newcomers = Newcomers(limit, device)
        self._counters = self._no_counters()
        self.reindex()

    @property
    def num_bytes(self) -> int:
        """Memory of the map without the new ids that it remembers."""
        held = (self.codes, self.counts, self.last_seen, self._sorted, self._order)
        return sum(each.numel() * each.element_size() for each in held)

    def reindex(self) -> None:
        """Look up by the present codes; needed after they were written from outside."""
        self._sorted, self._order = torch.sort(self.codes.view(-1))

    def look_up(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of ids.

        Args:
            codes: (L,) codes in the shard's buckets.

        Returns:
            (L,) rows of the shard, and (L,) whether the id has a row of its own.
        """
        places = torch.searchsorted(self._sorted, codes)  # the last rows are empty: always inside
        found = self._sorted[places] == codes
        bucket = torch.div(codes, self._span, rounding_mode="floor") - self.part.first
        unknown = (bucket + 1) * self.part.bucket_rows - 1
        return torch.where(found, self._order[places], unknown), found

    def is_ours(self, codes: Tensor) -> Tensor:
        """(L,) whether ids belong to one of the shard's buckets."""
        bucket = torch.div(codes, self._span, rounding_mode="floor") - self.part.first
        return (bucket >= 0) & (bucket < self.part.count)

    def record(self, codes: Tensor, step: int) -> Tensor:
        """Rows of the ids of a training step, which count as seen in it.

        Args:
            codes: (L,) codes in the shard's buckets.
            step: number of the step, counted from 1.

        Returns:
            (L,) rows of the shard.
        """
        rows, found = self.look_up(codes)
        self.counts.view(-1).index_add_(0, rows, torch.ones_like(rows))
        self.last_seen.view(-1).index_fill_(0, rows, step)
        self._counters.lookups += codes.numel()
        self._counters.misses += (~found).sum()
        is_new = ~found & (codes != self._missing)
        if codes.device.type == "cpu":
            self.newcomers.add(codes[is_new], step)
        else:  # choosing some would wait for the device
            self.newcomers.add(torch.where(is_new, codes, EMPTY), step)
        return rows

    def is_due(self, step: int) -> bool:
        """Whether rows are given to new ids in this step."""
        return step % self._options.interval == 0

    def admit(self, step: int) -> Change:
        """Take rows from ids that have not been seen for too long, then give rows to new ids.

        A new id takes a free row, or that of an id that is worth less. Ties leave the row where it
        is; among new ids the more frequent comes first.
        """
        before = self.codes.clone()
        self._expire(step)
        seen = self.newcomers.take(self._options.min_count)
        self._counters.dropped += self.newcomers.take_dropped()
        bounds = (torch.arange(self.part.count + 1) + self.part.first) * self._span
        cuts = torch.searchsorted(seen.codes, bounds.to(seen.codes.device)).tolist()
        for bucket, (start, stop) in enumerate(itertools.pairwise(cuts)):
            if start < stop:
                self._admit(bucket, seen.part(start, stop), step)
        self.reindex()
        changed = before != self.codes
        taken = changed & (before != EMPTY)
        self._counters.evictions += int(taken.sum())
        self._counters.admissions += int((changed & (self.codes != EMPTY)).sum())
        rows = changed.view(-1).nonzero().squeeze(1)
        return Change(rows, self.codes.view(-1)[rows])

    @property
    def rows_in_use(self) -> int:
        """Rows that some id has."""
        return int((self.codes != EMPTY).sum())

    def take_counters(self) -> Counters:
        """What happened since the last call; waits for the device."""
        counters, self._counters = self._counters, self._no_counters()
        return counters

    def _expire(self, step: int) -> None:
        if self._options.ttl_steps is None:
            return
        used = self.codes != EMPTY
        self._free(used & (step - self.last_seen >= self._options.ttl_steps))

    def _free(self, rows: Tensor | tuple[int, Tensor]) -> None:
        """Take rows, chosen by a mask or as a bucket and its rows, from their owners."""
        self.codes[rows] = EMPTY
        self.counts[rows] = 0
        self.last_seen[rows] = 0

    def _admit(self, bucket: int, seen: Seen, step: int) -> None:
        """Let one bucket's new ids compete with the owners of its rows."""
        codes = self.codes[bucket, :-1]
        counts, last_seen = self.counts[bucket, :-1], self.last_seen[bucket, :-1]
        owned = (codes != EMPTY).nonzero().squeeze(1)
        owned = owned[torch.argsort(codes[owned])]
        seen = seen.by_count()
        scores = torch.cat(
            [
                score(self._options, counts[owned], last_seen[owned], step),
                score(self._options, seen.counts, seen.last_seen, step),
            ]
        )
        ranked = torch.argsort(scores, descending=True, stable=True)
        best, rest = ranked[: codes.numel()], ranked[codes.numel() :]
        self._free((bucket, owned[rest[rest < len(owned)]]))
        chosen = best[best >= len(owned)] - len(owned)
        free = (codes == EMPTY).nonzero().squeeze(1)[: len(chosen)]
        codes[free] = seen.codes[chosen]
        counts[free] = seen.counts[chosen]
        last_seen[free] = seen.last_seen[chosen]

    def _no_counters(self) -> Counters:
        misses = torch.zeros((), dtype=torch.int64, device=self.codes.device)
        return Counters(0, misses, 0, 0, 0)


def score(options: ManagedIds, counts: Tensor, last_seen: Tensor, step: int) -> Tensor:
    """What it is worth to keep ids, float64; the least worth lose their rows.

    `lfu`: the count. `lru`: minus the age to the power `decay`. `distance_lfu`: the count divided
    by the age to the power `decay`. The age is 1 in the step in which an id was last seen. The
    same as TorchRec's policies of these names.

    Args:
        options: policy and decay.
        counts: (n,) how often each id was seen.
        last_seen: (n,) the step at which it was last seen.
        step: the present step.
    """
    if options.policy == "lfu":
        return counts.double()
    age = (step - last_seen + 1).double().pow(options.decay)
    return -age if options.policy == "lru" else counts.double() / age
