"""Measured program: a hand-written TorchRec loop of the same model, with its batches in memory."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.channel import Channel
from benchmarks.train_data import BATCH, CROSS_LAYERS, DIM, HIDDEN, IDS, NUMBERS


class Dense(nn.Module):
    """DCN-v2 behind the lookup, of `nn.Linear` layers; a number is a learned vector times its value."""

    def __init__(
        self, num_fields: int, num_numbers: int, dim: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        width = (num_fields + num_numbers) * dim
        self.numbers = nn.Parameter(torch.randn(num_numbers, dim) * 0.025)
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(CROSS_LAYERS))
        widths = itertools.pairwise((width, *hidden))
        self.deep = nn.ModuleList(nn.Linear(i, o) for i, o in widths)
        self.head = nn.Linear(width + hidden[-1], 1)

    def forward(self, pooled: Tensor, dense: Tensor) -> Tensor:
        """Map (B, N * K) and (B, D) to (B, 1)."""
        x0 = torch.cat([pooled, (dense.unsqueeze(-1) * self.numbers).flatten(1)], 1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        h = x0
        for layer in self.deep:
            h = F.relu(layer(h))
        logit: Tensor = self.head(torch.cat([x, h], 1))
        return logit


class Model(nn.Module):
    """Tables and what stands behind them."""

    def __init__(self, table_rows: int, *, is_bf16: bool) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name, embedding_dim=DIM, num_embeddings=table_rows, feature_names=[name]
                )
                for name in IDS
            ],
            device=torch.device("meta"),
        )
        self.dense = Dense(len(IDS), len(NUMBERS), DIM, HIDDEN)
        self.is_bf16 = is_bf16

    def forward(self, ids: KeyedJaggedTensor, dense: Tensor, label: Tensor) -> Tensor:
        """The mean loss."""
        pooled = self.tables(ids).values()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
            logit = self.dense(pooled, dense)
        return F.binary_cross_entropy_with_logits(logit.float().squeeze(1), label)


def batches(path: Path) -> list[tuple[KeyedJaggedTensor, Tensor, Tensor]]:
    """All batches of `rows.npz`, as the model takes them."""
    rows = np.load(path)
    lengths = torch.ones(len(IDS) * BATCH, dtype=torch.int32)
    made = []
    for first in range(0, rows["label"].size, BATCH):
        here = slice(first, first + BATCH)
        ids = KeyedJaggedTensor(
            keys=IDS,
            values=torch.from_numpy(rows["ids"][:, here].reshape(-1).copy()),
            lengths=lengths,
        )
        ids.sync()
        dense = torch.from_numpy(rows["numbers"][:, here].T.copy())
        made.append((ids, dense, torch.from_numpy(rows["label"][here].copy())))
    return made


def main() -> None:
    """Train until nobody asks for more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table-rows", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--steps", type=int, required=True)
    asked = parser.parse_args()
    channel = Channel()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with TemporaryDirectory() as directory:
        dist.init_process_group(
            "gloo", init_method=f"file://{directory}/rendezvous", rank=0, world_size=1
        )
        model = Model(asked.table_rows, is_bf16=asked.precision == "bf16")
        _apply_optimizer_in_backward(
            torch.optim.Adagrad, model.tables.parameters(), {"lr": 0.05, "eps": 1e-8}
        )
        sharded = DistributedModelParallel(model, device=torch.device("cpu"))
        optimizer = torch.optim.Adam(model.dense.parameters(), lr=1e-3)
        stream = itertools.cycle(batches(asked.rows))

        def run(steps: int) -> None:
            for batch in itertools.islice(stream, steps):
                optimizer.zero_grad()
                sharded(*batch).backward()
                optimizer.step()

        channel.serve(run, asked.steps, warm_up=2 * asked.steps)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
