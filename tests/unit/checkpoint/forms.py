"""Tables by hand in every form a run can give them, cut out of one set of logical tensors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prismrec.checkpoint import Checkpointer, Retention, capture, restore
from prismrec.embeddings.shards import LocalShard

ROWS = {"user": 11, "item": 7}
WIDTHS = {"wide": 8, "narrow": 4}
SHAPES = {f"{t}/{s}": (rows, dim) for t, rows in ROWS.items() for s, dim in WIDTHS.items()}

Logical = dict[str, dict[str, Tensor]]
"""`table/set` -> {"weight": ..., state: ...}, each whole."""


@dataclass(frozen=True)
class Form:
    layout: str
    kind: str
    world_size: int
    row_wise_state: bool = False

    def __str__(self) -> str:
        return f"{self.layout}-{self.kind}-{self.world_size}"


FORMS = [
    Form(layout, kind, world_size)
    for layout in ("packed", "separate")
    for kind in ("table_wise", "row_wise", "column_wise", "data_parallel")
    for world_size in (1, 2, 3)
]


def logical(seed: int = 0, row_wise_state: bool = False, coupled: bool = False) -> Logical:
    """Random whole tensors; with `coupled`, the sets of a table have the same row-wise state."""
    generator = torch.Generator().manual_seed(seed)
    out: Logical = {}
    for table, rows in ROWS.items():
        shared = torch.rand(rows, generator=generator)
        for set_name, dim in WIDTHS.items():
            own = torch.rand(rows, generator=generator)
            out[f"{table}/{set_name}"] = {
                "weight": torch.randn(rows, dim, generator=generator),
                "sum": (shared if coupled else own)
                if row_wise_state
                else torch.rand(rows, dim, generator=generator),
            }
    return out


def empty_like(form: Form) -> list[list[LocalShard]]:
    """The shards of every rank, with NaN in every weight and state.

    A packed table is one tensor per piece, and its shards are views of it.
    """
    ranks: list[list[LocalShard]] = [[] for _ in range(form.world_size)]
    physical = itertools.count()
    for table, rows in ROWS.items():
        groups = [list(WIDTHS)] if form.layout == "packed" else [[name] for name in WIDTHS]
        for sets in groups:
            width = sum(WIDTHS[name] for name in sets)
            for index, (row, col, height, breadth) in enumerate(
                _pieces(form, rows, width, next(physical))
            ):
                ranks[index % form.world_size] += _piece(
                    form, (table, sets), (row, col), (height, breadth), index
                )
    return ranks


def fill(ranks: list[list[LocalShard]], whole: Logical) -> list[list[LocalShard]]:
    """Write the logical values into the shards."""
    for shard in itertools.chain(*ranks):
        tensors = {"weight": shard.weight, **shard.states}
        for name, tensor in tensors.items():
            tensor.copy_(_cut(shard, whole[shard.key][name]))
    return ranks


def assert_equal(ranks: list[list[LocalShard]], whole: Logical) -> None:
    """Bit for bit, and every logical element lies somewhere."""
    seen = {key: torch.zeros(shape, dtype=torch.bool) for key, shape in SHAPES.items()}
    for shard in itertools.chain(*ranks):
        for name, tensor in {"weight": shard.weight, **shard.states}.items():
            assert torch.equal(tensor, _cut(shard, whole[shard.key][name])), (shard.key, name)
        _cut(shard, seen[shard.key]).fill_(True)
    assert all(bool(each.all()) for each in seen.values())


@dataclass
class Dense:
    """Dense tensors of a small model after some steps of Adam."""

    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)


def dense(seed: int = 0) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 5, generator=generator)
    return Dense(
        {
            "tower.weight": weight,
            "tower.half": torch.randn(4, generator=generator).bfloat16(),
            "norm.count": torch.tensor(seed + 7),
            "mask": torch.tensor([True, False, True]),
            "nothing": torch.empty(0, 5),
        },
        {
            "tower.weight/exp_avg": torch.randn(5, 3, generator=generator).t(),
            "tower.weight/step": torch.tensor(float(seed + 3)),
        },
        {"tower.weight": weight * 0.5},
    )


def save(
    directory: Path,
    ranks: list[list[LocalShard]],
    step: int = 1,
    values: Dense | None = None,
    metric: float | None = None,
) -> Path:
    """One save by as many ranks, each with its own background thread."""
    values = values or dense()
    world_size = len(ranks)
    savers = [
        Checkpointer(directory, rank, world_size, f"try{step}", Retention(keep_last=50), 20)
        for rank in range(world_size)
    ]
    for rank, (saver, shards) in enumerate(zip(savers, ranks, strict=True)):
        snapshot = capture(shards, values.model, values.optimizer, values.ema)
        saver.save(step, snapshot, {"step": step, "rank": rank}, metric)
    paths = {saver.wait() for saver in savers}
    assert len(paths) == 1
    path = paths.pop()
    assert path is not None
    return path


def load(path: Path, form: Form) -> list[list[LocalShard]]:
    """Restore on every rank of a form; the dense tensors of each rank are checked."""
    ranks, saved = empty_like(form), dense()
    for shards in ranks:
        mine = dense(seed=99)
        restore(path, shards, mine.model, mine.optimizer, mine.ema, SHAPES)
        for name in ("model", "optimizer", "ema"):
            for key, tensor in getattr(mine, name).items():
                assert torch.equal(tensor, getattr(saved, name)[key]), key
    return ranks


def _pieces(form: Form, rows: int, width: int, index: int) -> list[tuple[int, int, int, int]]:
    """(row, col, rows, cols) of each piece; piece i lies on rank i modulo the world size."""
    if form.kind == "table_wise":
        skipped = [(0, 0, 0, width)] * (index % form.world_size)
        return [*skipped, (0, 0, rows, width)]
    if form.kind == "row_wise":
        return [(0, 0, 4, width), (4, 0, rows - 4, width), (rows, 0, 0, width)]
    if form.kind == "column_wise":
        cut = 5 if width > 4 else 3
        return [(0, 0, rows, cut), (0, cut, rows, width - cut)]
    return [(0, 0, rows, width)] * form.world_size


def _piece(
    form: Form,
    names: tuple[str, list[str]],
    origin: tuple[int, int],
    size: tuple[int, int],
    index: int,
) -> list[LocalShard]:
    table, sets = names
    (row, col), (rows, cols) = origin, size
    weight = torch.full((rows, cols), torch.nan)
    state = torch.full((rows,) if form.row_wise_state else (rows, cols), torch.nan)
    shards, start = [], 0
    for name in sets:
        low, high = max(col, start), min(col + cols, start + WIDTHS[name])
        if low < high:
            part = slice(low - col, high - col)
            shards.append(
                LocalShard(
                    table=table,
                    set_name=name,
                    num_rows=ROWS[table],
                    num_cols=WIDTHS[name],
                    row=row,
                    col=low - start,
                    weight=weight[:, part],
                    states={"sum": state if form.row_wise_state else state[:, part]},
                    is_replica=form.kind == "data_parallel" and index > 0,
                )
            )
        start += WIDTHS[name]
    return shards


def _cut(shard: LocalShard, whole: Tensor) -> Tensor:
    rows, cols = shard.weight.shape
    block = whole[shard.row : shard.row + rows]
    return block if block.ndim == 1 else block[:, shard.col : shard.col + cols]
