"""Bytes as people read and write them."""

from __future__ import annotations

import re

from prismrec.config import UserError

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_UNITS = (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10))


def size(count: int) -> str:
    """A number of bytes in the unit that suits it.

    >>> size(3 * 2**29), size(2**20), size(5)
    ('1.5 GiB', '1.0 MiB', '5 B')
    """
    for unit, power in _UNITS:
        if abs(count) >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} B"


def parse_size(text: str, where: str) -> int:
    """The number of bytes in a text such as `80GiB` or `512 GB`; without a unit it is bytes.

    >>> parse_size("1.5 GiB", "--hbm"), parse_size("2MB", "--hbm")
    (1610612736, 2000000)

    Args:
        text: a number and B, KB, MB, GB, TB or KiB, MiB, GiB, TiB.
        where: what the text was given as, for the error.

    Raises:
        UserError: it is no such text, or no bytes.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if found is None or (found[3] and not found[2]) or not float(found[1]):
        raise UserError(
            f"{where}: '{text}' is no size; write a number above 0 with a unit, such as 80GiB or 512GB"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])
