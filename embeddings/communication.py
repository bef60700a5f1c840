"""The types in which pooled vectors and their gradients travel between ranks.

What a number may lose on one way, w being its size: fp16 w / 2^11 (and never less than 2^-25), bf16
w / 2^8, int8 half a 255th of the range of the 32 numbers that it travels with, 40 bytes together.
Kinds that cut rows add up the parts of a vector in fp16 or bf16, which loses as much again for every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fbgemm_gpu.quantize_comm import QuantizationContext, QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from prismrec.config import UserError
from prismrec.config.embedding import Communication, wire_problem
from prismrec.embeddings.sets import EmbeddingSpec

_TYPES = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "bf16": SparseType.BF16,
    "int8": SparseType.INT8,
}
_ADDING_KINDS = ("row_wise", "table_row_wise", "grid")


class WireSwitch:
    """Whether vectors travel in the type that was asked for, or as they are for a while.

    Every rank has one of its own, which all of its codecs share.
    """

    def __init__(self) -> None:
        self.is_packing = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Vectors travel in fp32 inside the block.

        Collective: every rank enters and leaves it between the same lookups.
        """
        was_packing, self.is_packing = self.is_packing, False
        try:
            yield
        finally:
            self.is_packing = was_packing


class SwitchedCodec(QuantizedCommCodec):
    """FBGEMM's codec of a type that hands on numbers as they are while its switch is off.

    Args:
        wire_type: what numbers travel in otherwise.
        switch: asked at every lookup.
    """

    def __init__(self, wire_type: SparseType, switch: WireSwitch) -> None:
        super().__init__(wire_type)
        self._switch = switch

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """The numbers as they travel."""
        return super().encode(input_tensor, ctx) if self._switch.is_packing else input_tensor

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """The numbers as they were, but for rounding."""
        return super().decode(input_tensor, ctx) if self._switch.is_packing else input_tensor

    def calc_quantized_size(self, input_len: int, ctx: QuantizationContext | None = None) -> int:
        """Elements of `quantized_dtype` that so many numbers travel in."""
        if not self._switch.is_packing:
            return input_len
        return super().calc_quantized_size(input_len, ctx)  # type: ignore[no-any-return]

    @property
    def quantized_dtype(self) -> torch.dtype:
        """What travels now."""
        return super().quantized_dtype if self._switch.is_packing else torch.float32


class ScaledCodec(QuantizedCommCodec):
    """FBGEMM's codec of a type for numbers that are multiplied first and divided when they arrive.

    FBGEMM's own `loss_scale` divides in the small type, where what it was to save is lost again.

    Args:
        wire_type: fp16, whose smallest normal number is 2^-14.
        scale: what brings usual numbers near 1.
    """

    def __init__(self, wire_type: SparseType, scale: float) -> None:
        super().__init__(wire_type)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """The numbers as they travel."""
        return super().encode(input_tensor * self._scale, ctx)

    def decode(self, input_tensor: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        """The numbers as they were, but for rounding."""
        return super().decode(input_tensor, ctx) / self._scale


def make_codecs(
    communication: Communication, batch_size: int, switch: WireSwitch | None = None
) -> dict[str, QuantizedCommCodecs] | None:
    """What TorchRec's sharder takes, None where everything travels as it is.

    TorchRec's own choice of codecs gives fp16 to who asks for bf16 on CPU; these give what is asked.

    Args:
        communication: the types.
        batch_size: B. A gradient of a mean over a batch is about 1 / B of one of a sum; those in
            fp16 are multiplied by the power of 2 below B on their way, or they would be lost.
        switch: turns the vectors' types off for a while; nothing does if not given.
    """
    if communication == Communication():
        return None
    backward = _TYPES[communication.backward]
    scale = 2.0 ** (batch_size.bit_length() - 1)
    codecs = QuantizedCommCodecs(
        forward=SwitchedCodec(_TYPES[communication.forward], switch or WireSwitch()),
        backward=ScaledCodec(backward, scale)
        if backward == SparseType.FP16
        else QuantizedCommCodec(backward, is_fwd=False),
    )
    ways = (CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER)
    return {way.name: codecs for way in ways}


def refused_by_communication(communication: Communication) -> dict[str, str]:
    """Kinds of placement that a type on the wire rules out, with the reason, by kind.

    >>> sorted(refused_by_communication(Communication(forward="int8")))
    ['grid', 'row_wise', 'table_row_wise']
    """
    if "int8" not in (communication.forward, communication.backward):
        return {}
    reason = (
        "it adds up the parts of a vector on their way, which int8 numbers with ranges of their own "
        "cannot do; embedding.communication = fp16 or bf16 can"
    )
    return dict.fromkeys(_ADDING_KINDS, reason)


def check_communication(spec: EmbeddingSpec, batch_size: int) -> None:
    """Refuse types on the wire that no vector would have, or that a batch cannot be cut into.

    Args:
        spec: what the tables are.
        batch_size: B.

    Raises:
        UserError: naming what to change.
    """
    communication = spec.communication
    if communication == Communication():
        return
    if all(table.sharding == "data_parallel" for table in spec.tables):
        raise UserError(
            "embedding.communication: no vector travels where every table is data_parallel; leave "
            "it out, or place a table otherwise"
        )
    problem = wire_problem(communication, batch_size)
    if problem is not None:
        raise UserError(problem)
