"""Ranks that several test files share: starting processes takes longer than all of their cases.

Whoever asks first has the cases of every file run that are for as many ranks.
"""

from __future__ import annotations

import importlib
from functools import cache

from tests.helpers.ranks import run_ranks
from tests.helpers.sharded import Trained, train_cases

_FILES = ("test_kinds", "test_tables", "test_communication", "test_copies")
"""Files of tests/distributed, each with `cases(world_size)`, the cases that are for so many ranks."""


def trained(world_size: int, file: str) -> list[list[Trained]]:
    """By rank, what each case of a file came to."""
    return _trained(world_size)[file]


@cache
def _trained(world_size: int) -> dict[str, list[list[Trained]]]:
    modules = {file: importlib.import_module(f"tests.distributed.{file}") for file in _FILES}
    of_files = {file: module.cases(world_size) for file, module in modules.items()}
    every = [case for cases in of_files.values() for case in cases]
    ranks, start, found = run_ranks(train_cases, world_size, every, timeout_s=280), 0, {}
    for file, cases in of_files.items():
        found[file] = [rank[start : start + len(cases)] for rank in ranks]
        start += len(cases)
    return found
