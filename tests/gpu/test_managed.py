"""Managed tables on the device against the plain reference, and TorchRec's hash variant beside them.

Bounds: 2e-5 for fp32 and 3e-3 for fp16, absolute and relative, after nine steps with evictions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from prismrec.data.encode.codes import id_codes
from prismrec.data.encode.ids import NULL_ID
from prismrec.train.process_group import process_group
from tests.distributed.test_managed import CASES
from tests.gpu.device import DEVICE, needs_cuda
from tests.helpers.managed import BUCKETS, expected_of, train_all


@pytest.mark.parametrize("index", range(len(CASES)))
def test_training_is_that_of_the_plain_reference(index: int) -> None:
    case, expected = CASES[index], expected_of(CASES[index])
    close = (3e-3, 3e-3) if case.data_type == "fp16" else (2e-5, 2e-5)
    with process_group(DEVICE):
        (found,) = train_all([replace(case, device=DEVICE)])
    assert expected.evicted > 5, "the case shows nothing unless ids lose their rows"
    for got, want in zip(found.outputs, expected.outputs, strict=True):
        for got_set, want_set in zip(got, want, strict=True):
            torch.testing.assert_close(got_set.double(), want_set, atol=close[0], rtol=close[1])
    for key, row, weight, _ in found.shards:
        want = expected.tables.weights[key].detach()[row : row + len(weight)]
        torch.testing.assert_close(weight.double(), want, atol=close[0], rtol=close[1])
    for table, plain in expected.maps.items():
        first, ids = found.owners[table]
        owners = {first + at: each for at, each in enumerate(ids) if each != NULL_ID}
        codes = id_codes(np.array(list(owners.values()), np.int64), BUCKETS).tolist()
        assert dict(zip(codes, owners, strict=True)) == plain.row


@needs_cuda("hash map of ids that trains")
def test_the_hash_variant_gives_every_id_a_row_of_its_own() -> None:
    device = torch.device(DEVICE)
    module = HashZchManagedCollisionModule(
        zch_size=256, device=device, total_num_buckets=4, input_hash_size=0
    )
    ids = (torch.randperm(1 << 20, generator=torch.Generator().manual_seed(2))[:64]).to(device)
    feature = JaggedTensor(ids, lengths=torch.ones(64, dtype=torch.int64, device=device))
    first = module({"f": feature})["f"].values().clone()
    assert first.unique().numel() == 64, "there is room for all"
    assert 0 <= int(first.min())
    assert int(first.max()) < 256
    assert torch.equal(module({"f": feature})["f"].values(), first), "an id keeps its row"
    other = JaggedTensor(
        ids[:8] + (1 << 21), lengths=torch.ones(8, dtype=torch.int64, device=device)
    )
    assert not set(module({"f": other})["f"].values().tolist()) & set(first.tolist())
