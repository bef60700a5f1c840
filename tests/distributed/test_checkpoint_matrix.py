"""Checkpoints of trained tables, restored under every other kind, layout and number of ranks.

Three steps in the source form, a checkpoint, then the same in the target form: every weight and
state is the source's to the bit, and the losses of the next two steps are the source's own to 1e-6.
The second of them needs the optimizer's state. Row-wise state whose numbers stand for other columns
in the target takes their mean instead; there the first loss is equal and the state is the rule's.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from prismrec.config.placement import KINDS
from tests.helpers.moves import Form, Move, converted, run_moves
from tests.helpers.ranks import run_ranks

COVERING = {
    "sgd": (
        Form("packed", "data_parallel", 4),
        Form("separate", "column_wise", 2),
        Form("packed", "grid", 4),
        Form("separate", "row_wise", 1),
    ),
    "adagrad": (
        Form("packed", "table_wise", 1),
        Form("separate", "row_wise", 4),
        Form("packed", "data_parallel", 2),
        Form("spread", "column_wise", 2),
        Form("packed", "column_wise", 1),
        Form("separate", "table_column_wise", 4),
        Form("packed", "uneven", 2),
        Form("separate", "data_parallel", 1),
        Form("packed", "grid", 4),
        Form("separate", "table_row_wise", 4),
        Form("packed", "row_wise", 4, copies=2),
        Form("spread", "table_column_wise", 4),
        Form("spread", "grid", 4),
    ),
    "rowwise_adagrad": (
        Form("separate", "table_wise", 1),
        Form("separate", "row_wise", 4),
        Form("packed", "row_wise", 2),
        Form("packed", "table_row_wise", 4),
        Form("packed", "column_wise", 1),
        Form("spread", "column_wise", 4),
        Form("packed", "uneven", 2),
        Form("packed", "grid", 4),
        Form("separate", "column_wise", 4),
        Form("packed", "table_column_wise", 4),
        Form("separate", "column_wise", 4, copies=2),
    ),
    "own": (
        Form("packed", "table_wise", 2),
        Form("separate", "row_wise", 1),
        Form("packed", "uneven", 4),
        Form("separate", "grid", 4),
    ),
}
"""By optimizer, forms that among them have every kind, layout and number of ranks."""


def _covering() -> list[Move]:
    """From every form to the next one, and to the third after it."""
    return [
        Move(optimizer, source, forms[(index + ahead) % len(forms)])
        for optimizer, forms in COVERING.items()
        for index, source in enumerate(forms)
        for ahead in (1, 3)
    ]


def _every_form(optimizer: str) -> list[Form]:
    found = [
        Form(layout, kind, world_size)
        for kind in KINDS
        for layout in ("packed", "separate")
        for world_size in (1, 2, 4)
        if kind != "data_parallel" or optimizer == "adagrad"
    ]
    found += [Form("packed", "uneven", world_size) for world_size in (2, 4)]
    found += [Form("spread", "column_wise", world_size) for world_size in (2, 4)]
    return [
        *found,
        Form("packed", "row_wise", 4, copies=2),
        Form("separate", "uneven", 4, copies=2),
    ]


def test_forms_of_every_sort_restore_one_another(tmp_path: Path) -> None:
    moves = _covering()
    for place in ("source", "target"):
        forms = [getattr(move, place) for move in moves]
        assert {form.kind for form in forms} == {*KINDS, "uneven"}
        assert {form.layout for form in forms} == {"packed", "separate", "spread"}
        assert {form.ranks for form in forms} == {1, 2, 4}
    assert {bool(converted(move)) for move in moves if "row" in move.optimizer} == {True, False}
    assert run_ranks(run_moves, 4, moves, str(tmp_path), timeout_s=300) == [[]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "own"])
def test_every_form_restores_every_other(tmp_path: Path, optimizer: str) -> None:
    """Without SGD: its checkpoints are Adagrad's less the state."""
    forms = _every_form(optimizer)
    moves = [Move(optimizer, *pair) for pair in itertools.product(forms, forms)]
    assert run_ranks(run_moves, 4, moves, str(tmp_path), timeout_s=3600) == [[]] * 4
