"""The first vector of an id in a managed table: normal numbers that depend on the id, not its row.

Notation: n ids, d columns.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_FIRST_SHIFT, _SECOND_SHIFT, _LAST_SHIFT = 30, 27, 31
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15)


def set_seed(seed: int, table: str, set_name: str) -> int:
    """Seed of the first vectors of one table in one set, as a signed 64-bit number."""
    digest = hashlib.blake2b(f"{seed}/{table}/{set_name}/ids".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def first_vectors(codes: Tensor, columns: range, seed: int) -> Tensor:
    """Standard normal numbers for some columns of ids, the same on every rank and device.

    Each is made from the id, the column and the seed alone: 64 bits scattered as by SplitMix64
    (Steele, Lea, Flood, OOPSLA 2014), of which two halves become one normal number by the method
    of Box and Muller.

    Args:
        codes: (n,) int64.
        columns: d columns of the set.
        seed: of the table and set.

    Returns:
        (n, d) float32.
    """
    of_row = _scatter(codes + seed)
    of_column = torch.arange(columns.start, columns.stop, device=codes.device) + 1
    bits = _scatter(of_row[:, None] + of_column * _signed(_FACTORS[2]))
    radius = (_logical_shift(bits, 32).double() + 1) / 2**32  # in (0, 1]
    angle = (bits & 0xFFFFFFFF).double() * (2 * math.pi / 2**32)
    return (torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)).float()


def _scatter(z: Tensor) -> Tensor:
    z = (z ^ _logical_shift(z, _FIRST_SHIFT)) * _signed(_FACTORS[0])
    z = (z ^ _logical_shift(z, _SECOND_SHIFT)) * _signed(_FACTORS[1])
    return z ^ _logical_shift(z, _LAST_SHIFT)


def _logical_shift(z: Tensor, bits: int) -> Tensor:
    """Shift to the right with zeros coming in, where torch repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
