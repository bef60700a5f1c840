"""Measured program: FuxiCTR's training loop on DCN-v2 of its own layers, with batches in memory.

Runs in an environment of its own, which `benchmarks/train_step.py` makes. FuxiCTR's package holds
the layers and the trainer; its DCN-v2 for plain features lies in its repository only, so the eight
lines that put the layers together stand here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.channel import Channel

DIM, HIDDEN, CROSS_LAYERS, BATCH = 16, [400, 400, 400], 3, 4096


class DCNv2(BaseModel):
    """Cross network beside an MLP, one linear layer on both."""

    def __init__(self, features: FeatureMap, directory: str) -> None:
        super().__init__(
            features, model_id="bench", gpu=-1, verbose=0, model_root=directory, metrics=["AUC"]
        )
        self.embedding_layer = FeatureEmbedding(features, DIM)
        width = features.sum_emb_out_dim()
        self.cross = CrossNetV2(width, CROSS_LAYERS)
        self.deep = MLP_Block(
            input_dim=width, output_dim=None, hidden_units=HIDDEN, hidden_activations="ReLU"
        )
        self.fc = nn.Linear(width + HIDDEN[-1], 1)
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1) under the key its trainer looks for."""
        x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        logit = self.fc(torch.cat([self.cross(x), self.deep(x)], -1))
        return {"y_pred": self.output_activation(logit)}


def _features(directory: str, ids: int, numbers: int, table_rows: int) -> FeatureMap:
    features = FeatureMap("bench", directory)
    features.default_emb_dim = DIM
    features.labels = ["label"]
    for n in range(ids):
        features.features[f"id_{n}"] = {
            "source": "",
            "type": "categorical",
            "vocab_size": table_rows,
            "padding_idx": None,
        }
    for n in range(numbers):
        features.features[f"number_{n}"] = {"source": "", "type": "numeric"}
    features.num_fields = features.get_num_fields()
    return features


def _batches(path: Path) -> list[dict[str, Tensor]]:
    rows = np.load(path)
    columns = {f"id_{n}": torch.from_numpy(ids) for n, ids in enumerate(rows["ids"])}
    columns |= {f"number_{n}": torch.from_numpy(some) for n, some in enumerate(rows["numbers"])}
    columns["label"] = torch.from_numpy(rows["label"])
    total = len(columns["label"])
    return [
        {name: column[first : first + BATCH] for name, column in columns.items()}
        for first in range(0, total, BATCH)
    ]


def main() -> None:
    """Train until nobody asks for more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table-rows", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    asked = parser.parse_args()
    channel = Channel()
    made = _batches(asked.rows)
    numbers = sum(name.startswith("number_") for name in made[0])
    with TemporaryDirectory() as directory:
        features = _features(directory, len(made[0]) - numbers - 1, numbers, asked.table_rows)
        model = DCNv2(features, directory)
        model._max_gradient_norm = 10.0  # what its `fit` sets by default
        model._total_steps, model._eval_steps = 0, 1 << 60
        model._epoch_index, model._stop_training = 0, False

        def run(steps: int) -> None:
            first = model._total_steps
            model.train_epoch([made[n % len(made)] for n in range(first, first + steps)])

        channel.serve(run, asked.steps, warm_up=asked.steps)


if __name__ == "__main__":
    main()
