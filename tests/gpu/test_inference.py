"""Compressed tables looked up on the device: the numbers that their stored rows stand for.

Stored rows are made by the package's own `encode_table` and read back in plain PyTorch by `decode_rows`.
Bound: 1e-5 of the largest number for fp32, fp16, int8 and int4, whose sums are taken in float32.
"""

from __future__ import annotations

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)

from prismrec.serving.tables import TableType, decode_rows, encode_table
from tests.gpu.device import DEVICE, IS_CUDA

TYPES: dict[TableType, SparseType] = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "int8": SparseType.INT8,
    "int4": SparseType.INT4,
}
ROWS, FEATURES, BATCH = 50, 3, 40


@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("table_type", list(TYPES))
def test_compressed_rows_sum_to_what_they_stand_for(table_type: TableType, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    tables = [torch.randn(ROWS, width, generator=generator) for _ in range(FEATURES)]
    stored = [encode_table(table, table_type, "t") for table in tables]
    where = EmbeddingLocation.DEVICE if IS_CUDA else EmbeddingLocation.HOST
    kernel = IntNBitTableBatchedEmbeddingBagsCodegen(
        [(f"t{i}", ROWS, width, TYPES[table_type], where) for i in range(FEATURES)],
        pooling_mode=PoolingMode.SUM,
        device=DEVICE,
        output_dtype=SparseType.FP32,
    )
    kernel.initialize_weights()
    memory = kernel.split_embedding_weights(split_scale_shifts=False)
    for (rows, _), of_table in zip(memory, stored, strict=True):
        rows[:, : of_table.shape[1]] = of_table.to(DEVICE)
    lengths = torch.randint(0, 5, (FEATURES * BATCH,), generator=generator)
    ids = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    got = kernel(ids.int().to(DEVICE), offsets.int().to(DEVICE)).cpu()
    expected = torch.zeros(BATCH, FEATURES, width, dtype=torch.double)
    for place, length in enumerate(lengths.tolist()):
        feature, row = divmod(place, BATCH)
        chosen = ids[offsets[place] : offsets[place] + length]
        numbers = decode_rows(stored[feature], table_type).double()
        expected[row, feature] = numbers[chosen].sum(0)
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected.flatten(1), atol=bound, rtol=0)
    whole = tables[0].double() - decode_rows(stored[0], table_type).double()
    assert whole.abs().max() <= {"fp32": 0, "fp16": 2e-3, "int8": 2e-2, "int4": 0.3}[table_type]
