"""Starting a run with the weights of another: tables by id, dense weights by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prismrec.checkpoint.manifest import DTYPES, DenseGroup
from prismrec.checkpoint.reader import assign
from prismrec.checkpoint.row_state import row_states
from prismrec.checkpoint.snapshot import WEIGHT
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import UserError, nearest
from prismrec.config.train import WarmStart
from prismrec.data.rows import Ints
from prismrec.embeddings.collection import physical_tables
from prismrec.embeddings.optimizers import ROW_WISE_STATES, STATE_NAMES
from prismrec.embeddings.row_ids import NO_ROW, Alignment, TableIds, align, same_rows
from prismrec.embeddings.sets import EmbeddingSpec
from prismrec.embeddings.shards import LocalShard
from prismrec.train.matches import Kind, Match

_BLOCK_ROWS = 1 << 16
_FLOATS = {torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Pair:
    """One table in one set, and what it starts with.

    Args:
        source: `table/set` of the other run, or an empty text.
        rows: the rows there that stand for rows here; None where nothing matches.
        note: why nothing matches.
        is_wanted: whether the recipe does not leave it out.
    """

    source: str
    rows: Alignment | None
    note: str = ""
    is_wanted: bool = True


class TableStarter:
    """What the tables of a run take from a checkpoint of another, decided before anything changes.

    Args:
        section: what the recipe asks for.
        tables: the other run's checkpoint, open.
        spec: this run's sets and tables, every layout chosen.
        ids: what this run's rows stand for.

    Raises:
        UserError: a name in the section's mappings is not known here, or not there.
    """

    def __init__(
        self, section: WarmStart, tables: CheckpointTables, spec: EmbeddingSpec, ids: TableIds
    ) -> None:
        self._section, self._tables, self._ids = section, tables, ids
        self._stored = tables.reader.manifest.tables
        self._shapes = {
            f"{table.name}/{each.name}": (table.rows, each.dim)
            for table in spec.tables
            for each in spec.sets_of(table)
        }
        self._managed = {
            table.name: (table.rows, table.managed.buckets)
            for table in spec.tables
            if table.managed is not None
        }
        self._check_names()
        self._pairs = {key: self._pair(key, dim) for key, (_, dim) in self._shapes.items()}
        self._states: dict[str, str] = {}
        if section.optimizer_state:
            self._states = self._state_problems(spec)

    @property
    def managed_sources(self) -> dict[str, str]:
        """The managed tables whose rows go to the ids that have them there, with their names there."""
        return {
            key.partition("/")[0]: pair.source.partition("/")[0]
            for key, pair in self._pairs.items()
            if pair.rows is not None and key.partition("/")[0] in self._managed
        }

    def fill(self, shards: Sequence[LocalShard]) -> Iterator[Match]:
        """Fill this rank's blocks; each rank reads what its rows need.

        Yields:
            Always the same tensors in the same order; `matched` counts the rows that this rank has
            and no lower one.

        Raises:
            UserError: the checkpoint is damaged, or a number is too large for the type here.
        """
        matched = dict.fromkeys(self._pairs, 0)
        for shard in shards:
            matched[shard.key] += self._fill(shard)
        self._fill_row_wise(shards)
        for key, pair in self._pairs.items():
            yield self._match(key, pair, matched[key])
        for name, problem in self._states.items():
            yield self._state_match(name, problem, matched[name.rpartition("/")[0]])
        used = {pair.source for pair in self._pairs.values()}
        for key in sorted(self._stored.keys() - used):
            there = self._stored[key].rows
            yield Match("table", "", key, 0, 0, there, "not taken", is_wanted=False)

    def _fill(self, shard: LocalShard) -> int:
        """Fill weight and element-wise state of one block; its rows, if they count on this rank."""
        pair = self._pairs[shard.key]
        if pair.rows is None or not shard.weight.numel():
            return 0
        entry, filled = self._stored[pair.source], 0
        named = {WEIGHT: shard.weight} | {
            name: state
            for name, state in shard.states.items()
            if state.ndim == 2 and self._states.get(f"{shard.key}/{name}") == ""
        }
        for places, rows in _blocks(pair.rows, shard.row, shard.weight.shape[0]):
            for name, tensor in named.items():
                cols = tensor.shape[1]
                values = self._tables.reader.gather(entry.tensors[name], rows, shard.col, cols)
                _put(f"{pair.source}/{name}", tensor, places, values)
            filled += len(places)
        return filled if shard.col == 0 and not shard.is_replica else 0

    def _fill_row_wise(self, shards: Sequence[LocalShard]) -> None:
        for state in row_states(shards):
            if any(self._states.get(f"{key}/{state.name}") != "" for key, _, _ in state.spans):
                continue
            pair = self._pairs[state.spans[0][0]]
            assert pair.rows is not None  # a state without a problem belongs to a pair without one
            spans = tuple((self._pairs[key].source, col, cols) for key, col, cols in state.spans)
            for places, rows in _blocks(pair.rows, state.row, len(state.values)):
                values = self._tables.reader.gather_state(state.name, spans, rows)
                _put(state.label, state.values, places, values)

    def _match(self, key: str, pair: _Pair, matched: int) -> Match:
        there = self._stored[pair.source].rows if pair.source else 0
        here = self._shapes[key][0]
        return Match("table", key, pair.source, matched, here, there, pair.note, pair.is_wanted)

    def _state_match(self, name: str, problem: str, matched: int) -> Match:
        key, _, state = name.rpartition("/")
        pair, here = self._pairs[key], self._shapes[key][0]
        if problem:
            return Match("table state", name, "", 0, here, 0, problem, pair.is_wanted)
        there = self._stored[pair.source].rows
        return Match("table state", name, f"{pair.source}/{state}", matched, here, there)

    def _pair(self, key: str, dim: int) -> _Pair:
        table, set_name = key.split("/")
        there = self._section.tables.get(table, table), self._section.sets.get(set_name, set_name)
        if "" in there:
            return _Pair("", None, "left out", is_wanted=False)
        source = "/".join(there)
        if source not in self._stored:
            return _Pair("", None, f"the other run has no {source}")
        if self._stored[source].cols != dim:
            return _Pair(source, None, f"{dim} wide here, {self._stored[source].cols} wide there")
        stored_map = self._tables.reader.manifest.maps.get(there[0])
        if stored_map is not None and table in self._managed:
            if self._managed[table] == (stored_map.rows, stored_map.buckets):
                return _Pair(source, same_rows)
        rows, problem = align((self._ids, table), (self._tables.ids, there[0]))
        return _Pair(source, rows, problem)

    def _check_names(self) -> None:
        keys, stored = ([key.split("/") for key in each] for each in (self._shapes, self._stored))
        for index, (word, given) in enumerate(
            (("tables", self._section.tables), ("sets", self._section.sets))
        ):
            here, there = {key[index] for key in keys}, {key[index] for key in stored}
            for ours, theirs in given.items():
                where = f"train.warm_start.{word}"
                if ours not in here:
                    raise UserError(f"{where}: this run has no '{ours}'; {nearest(ours, here)}")
                if theirs and theirs not in there:
                    raise UserError(
                        f"{where}.{ours}: the other run has no '{theirs}'; {nearest(theirs, there)}"
                    )

    def _state_problems(self, spec: EmbeddingSpec) -> dict[str, str]:
        """By `table/set/state`, why it cannot be taken; an empty text where it can."""
        problems: dict[str, str] = {}
        for physical in physical_tables(spec):
            keys = [f"{physical.table.name}/{name}" for name in physical.slices]
            rule = physical.form.optimizer.name
            for state in dict.fromkeys(STATE_NAMES[rule].values()):
                is_row_wise = state in ROW_WISE_STATES.get(rule, ())
                of_each = {key: self._state_problem(key, state, is_row_wise) for key in keys}
                tables = {self._pairs[key].source.partition("/")[0] for key in keys}
                if is_row_wise and (any(of_each.values()) or len(tables) > 1):
                    shared = "the sets that share it do not all match"
                    of_each = {key: problem or shared for key, problem in of_each.items()}
                problems |= {f"{key}/{state}": problem for key, problem in of_each.items()}
        return {key: problems[key] for key in sorted(problems)}

    def _state_problem(self, key: str, state: str, is_row_wise: bool) -> str:
        pair = self._pairs[key]
        if pair.rows is None:
            return pair.note
        stored = self._stored[pair.source].tensors.get(state)
        if stored is None:
            return "the other run's optimizer has no such state"
        if stored.is_row_wise != is_row_wise:
            return "one number for a row in one of the runs, one for a weight in the other"
        return ""


def fill_dense(
    section: WarmStart,
    tables: CheckpointTables,
    wanted: Mapping[DenseGroup, Mapping[str, Tensor]],
) -> list[Match]:
    """Fill dense tensors with those of equal name and shape.

    Args:
        section: what the recipe asks for.
        tables: the other run's checkpoint, open.
        wanted: the tensors of this run by group and name: `dense`, `dense_optimizer` and `ema`. An
            average that the other run does not have becomes a copy of the weight.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if not section.dense:
        return []
    dense = wanted["dense"]
    matches = _fill_group(tables, "dense", dense)
    filled = {match.name for match in matches if match.matched == match.here}
    averages = {name: each for name, each in wanted["ema"].items() if name in filled}
    for match in _fill_group(tables, "ema", averages):
        if match.name in averages and match.matched < match.here:
            assign(match.name, averages[match.name], dense[match.name])
    if section.optimizer_state:
        matches += _fill_group(tables, "dense_optimizer", wanted["dense_optimizer"])
    return matches


def _fill_group(
    tables: CheckpointTables, which: DenseGroup, group: Mapping[str, Tensor]
) -> list[Match]:
    stored, matches = tables.reader.manifest.group(which), []
    kind: Kind = "dense state" if which == "dense_optimizer" else "dense"
    for name, tensor in group.items():
        entry, here = stored.get(name), tensor.numel()
        if entry is None:
            note = f"the other run has no {name}"
            matches.append(Match(kind, name, "", 0, here, 0, note))
            continue
        there, problem = torch.Size(entry.shape).numel(), ""
        if tuple(tensor.shape) != entry.shape:
            problem = f"of shape {tuple(tensor.shape)} here, {entry.shape} there"
        elif (
            tensor.dtype != DTYPES[entry.dtype]
            and not {tensor.dtype, DTYPES[entry.dtype]} <= _FLOATS
        ):
            problem = f"of type {tensor.dtype} here, {DTYPES[entry.dtype]} there"
        else:
            assign(f"{which} {name}", tensor, tables.reader.entry(entry))
        matches.append(Match(kind, name, name, 0 if problem else here, here, there, problem))
    for name in sorted(stored.keys() - group.keys()):
        there = torch.Size(stored[name].shape).numel()
        matches.append(Match(kind, "", name, 0, 0, there, "not taken", is_wanted=False))
    return matches


def _blocks(alignment: Alignment, first: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places in a block of rows that have counterparts, and those, a bounded number at a time."""
    for start in range(first, first + count, _BLOCK_ROWS):
        rows: Ints = alignment(start, min(start + _BLOCK_ROWS, first + count))
        found = (rows != NO_ROW).nonzero()[0]
        if len(found):
            yield torch.from_numpy(found + (start - first)), torch.from_numpy(rows[found])


def _put(name: str, out: Tensor, places: Tensor, values: Tensor) -> None:
    """Write values into some rows of a tensor, on its device and in its type."""
    converted = torch.empty(values.shape, dtype=out.dtype)
    assign(name, converted, values)
    with torch.no_grad():
        out.index_copy_(0, places.to(out.device), converted.to(out.device))
