"""Marks every test of this folder `gpu`, and skips it where there is no device for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.gpu.device import DEVICE, WHY_NOT


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.gpu)
            if not DEVICE:
                item.add_marker(pytest.mark.skip(reason=WHY_NOT))
