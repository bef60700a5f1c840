"""Row-wise optimizer state: one number for each row of a shard, for all the columns that lie in it.

So the numbers of a row depend on how its columns are cut into shards, and on the sets that are
packed into one shard and share them. State for another cut is made of what is stored: a number
takes the mean of those that stood for its columns, each weighed by how many of these columns it
stood for. Where one number becomes several, that is a copy; where several become one, their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prismrec.checkpoint.manifest import Accumulator, Conversion, Manifest
from prismrec.checkpoint.regions import Region, overlaps
from prismrec.checkpoint.snapshot import memory_of
from prismrec.embeddings.shards import LocalShard

_MAX_LISTED = 20

Spans = tuple[tuple[str, int, int], ...]
"""Columns that a number stands for, sorted: `table/set`, first column, number of columns."""


@dataclass(frozen=True, slots=True)
class RowState:
    """Row-wise state of one shard on this rank.

    Args:
        name: of the state.
        row: first row.
        spans: the columns that each number stands for.
        values: (rows,), the numbers.
    """

    name: str
    row: int
    spans: Spans
    values: Tensor

    @property
    def cols(self) -> int:
        """Number of columns that each number stands for."""
        return sum(cols for _, _, cols in self.spans)

    @property
    def label(self) -> str:
        """Name of the first logical tensor that it is a part of, for errors."""
        return f"{self.spans[0][0]}/{self.name}"


@dataclass(slots=True)
class Source:
    """A stored tensor that a row-wise state takes numbers from.

    Args:
        file: where it is stored.
        key: under which name.
        dtype: of which type.
        row: first row that it has.
        rows: rows that it has.
        cols: the state's columns that its numbers stand for.
    """

    file: str
    key: str
    dtype: str
    row: int
    rows: int
    cols: int = 0


def row_states(shards: Iterable[LocalShard]) -> list[RowState]:
    """The row-wise states of shards, each once, also where packed sets share it."""
    first: dict[tuple[int, int], tuple[str, LocalShard]] = {}
    spans: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
    for shard in shards:
        for name, state in shard.states.items():
            if state.ndim == 1 and shard.weight.numel():
                first.setdefault(memory_of(state), (name, shard))
                span = (shard.key, shard.col, shard.weight.shape[1])
                spans.setdefault(memory_of(state), []).append(span)
    return [
        RowState(name, shard.row, tuple(sorted(spans[memory])), shard.states[name])
        for memory, (name, shard) in first.items()
    ]


def sources(manifest: Manifest, state: RowState) -> list[Source]:
    """The stored tensors that hold the numbers of a state's rows and columns."""
    found: dict[tuple[str, str], Source] = {}
    for key, col, cols in state.spans:
        entry = manifest.tables[key].tensors[state.name]
        for block, shared in overlaps(entry, Region(state.row, len(state.values), col, cols)):
            source = Source(block.file, block.key, entry.dtype, block.row, block.rows)
            found.setdefault((block.file, block.key), source).cols += shared.cols
    return list(found.values())


def find_conversions(manifest: Manifest, states: Sequence[RowState]) -> tuple[Conversion, ...]:
    """What has to be converted to read row-wise states from a checkpoint.

    Args:
        manifest: of the checkpoint; it has all of the states.
        states: those on this rank.

    Returns:
        By tensor; `after` only has what is on this rank, see `merge_conversions`.
    """
    if not states:
        return ()
    stored = _stored_spans(manifest)
    found = []
    for state in states:
        origins = sources(manifest, state)
        if all(stored[each.file, each.key] == state.spans for each in origins):
            continue
        is_copy = all(each.cols == state.cols for each in origins)
        rule: Literal["copy", "mean"] = "copy" if is_copy else "mean"
        for key, _, _ in state.spans:
            blocks = manifest.tables[key].tensors[state.name].blocks
            cuts = {stored[block.file, block.key] for block in blocks}
            found.append(
                Conversion(
                    tensor=f"{key}/{state.name}",
                    step=manifest.step,
                    rule=rule,
                    before=_of_set(key, cuts),
                    after=_of_set(key, [state.spans]),
                )
            )
    return merge_conversions(found)


def merge_conversions(found: Iterable[Conversion]) -> tuple[Conversion, ...]:
    """The conversions that several ranks or shards saw, as one for each tensor."""
    by_tensor: dict[str, list[Conversion]] = {}
    for each in found:
        by_tensor.setdefault(each.tensor, []).append(each)
    return tuple(
        all_of[0].model_copy(
            update={
                "rule": "mean" if any(each.rule == "mean" for each in all_of) else "copy",
                "after": _in_order(piece for each in all_of for piece in each.after),
            }
        )
        for _, all_of in sorted(by_tensor.items())
    )


def latest_conversions(
    earlier: Iterable[Conversion], later: Iterable[Conversion]
) -> tuple[Conversion, ...]:
    """The last conversion of every tensor that has one, by tensor."""
    last = {each.tensor: each for each in (*earlier, *later)}
    return tuple(each for _, each in sorted(last.items()))


def describe_conversions(found: Sequence[Conversion]) -> str:
    """What was converted and how, in one line."""
    listed = [
        f"{each.tensor} ({_numbers(each.before)} to {_numbers(each.after)}, {each.rule})"
        for each in found[:_MAX_LISTED]
    ]
    if len(found) > _MAX_LISTED:
        listed.append(f"{len(found) - _MAX_LISTED} more")
    return (
        "row-wise optimizer state was stored for another cut of the columns and was converted, so "
        f"training goes on with other steps than there: {', '.join(listed)}"
    )


def _numbers(pieces: Sequence[Accumulator]) -> str:
    sharing = sorted({name for each in pieces for name in each.shared_with})
    return f"{len(pieces)} a row" + (f" shared with {' and '.join(sharing)}" if sharing else "")


def _stored_spans(manifest: Manifest) -> dict[tuple[str, str], Spans]:
    """The columns that the numbers of each stored row-wise tensor stand for, by file and key."""
    spans: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
    for key, table in manifest.tables.items():
        for tensor in table.tensors.values():
            for block in tensor.blocks if tensor.is_row_wise else ():
                spans.setdefault((block.file, block.key), []).append((key, block.col, block.cols))
    return {place: tuple(sorted(found)) for place, found in spans.items()}


def _of_set(key: str, cuts: Iterable[Spans]) -> tuple[Accumulator, ...]:
    """What the numbers of some cuts stand for in one set."""
    return _in_order(
        Accumulator(
            col=col,
            cols=cols,
            shared_with=tuple(
                sorted({other.partition("/")[2] for other, _, _ in spans} - {key.partition("/")[2]})
            ),
        )
        for spans in cuts
        for owner, col, cols in spans
        if owner == key
    )


def _in_order(pieces: Iterable[Accumulator]) -> tuple[Accumulator, ...]:
    return tuple(sorted(set(pieces), key=lambda each: (each.col, each.cols, each.shared_with)))
