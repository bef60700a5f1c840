"""Measured program: FuxiCTR's own `fit` on models of its own layers, one run for every line on standard input.

Runs in the environment of its own that `benchmarks/train_step.py` makes. The package holds layers and
trainer; how its repository puts them together for plain features stands here, with first-order weights
by id in FM, FwFM, FmFM, DeepFM and xDeepFM.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    CompressedInteractionNet,
    CrossNetV2,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

from benchmarks.channel import Channel
from benchmarks.frappe.setting import (
    BATCH,
    CROSS_LAYERS,
    DIM,
    DROPOUT,
    EPOCHS,
    FIELDS,
    HIDDEN,
    MAPS,
    PATIENCE,
    SPLITS,
    Job,
)

WIDTH = len(FIELDS) * DIM
PAIRS = len(FIELDS) * (len(FIELDS) - 1) // 2


class Matrices(nn.Module):
    """FmFM's products: a matrix for each pair, drawn as FuxiCTR draws them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(PAIRS, DIM, DIM))
        nn.init.xavier_normal_(self.weight)
        self.register_buffer("pairs", torch.triu_indices(len(FIELDS), len(FIELDS), 1))

    def forward(self, X: Tensor) -> Tensor:
        """Map (B, N, K) to (B, 1)."""
        left, right = X[:, self.pairs[0]], X[:, self.pairs[1]]
        met = torch.einsum("bpk,pkl->bpl", left, self.weight)
        return (met * right).sum((1, 2)).unsqueeze(1)


class Model(BaseModel):
    """Logits of first-order weights, products and a DNN, as the model has them, added up."""

    def __init__(self, features: FeatureMap, directory: str, job: Job) -> None:
        super().__init__(
            features,
            model_id="frappe",
            gpu=-1,
            verbose=0,
            model_root=directory,
            metrics=["AUC", "logloss"],
            early_stop_patience=PATIENCE,
        )
        self.kind = job["model"]
        self.embedding_layer = FeatureEmbedding(features, DIM)
        if self.kind in ("fm", "fwfm", "fmfm", "deepfm", "xdeepfm"):
            self.linear = LogisticRegression(features)
        if self.kind in ("fwfm", "ipnn"):
            self.inner = InnerProductInteraction(len(FIELDS), output="inner_product")
        if self.kind == "fwfm":
            self.weights = nn.Linear(PAIRS, 1, bias=False)
        if self.kind == "fmfm":
            self.matrices = Matrices()
        if self.kind in ("fm", "deepfm"):
            self.products = InnerProductInteraction(len(FIELDS), output="product_sum")
        if self.kind == "xdeepfm":
            self.cin = CompressedInteractionNet(len(FIELDS), list(MAPS))
        if self.kind == "dcnv2":
            self.cross = CrossNetV2(WIDTH, CROSS_LAYERS)
            self.deep = _mlp(WIDTH, None)
            self.fc = nn.Linear(WIDTH + HIDDEN[-1], 1)
        if self.kind in ("ipnn", "deepfm", "xdeepfm"):
            self.deep = _mlp(WIDTH + (PAIRS if self.kind == "ipnn" else 0), 1)
        self.compile("adam", "binary_crossentropy", job["rate"])
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities (B, 1) under the key its trainer looks for."""
        ids = self.get_inputs(inputs)
        X = self.embedding_layer(ids)
        x = X.flatten(1)
        terms: dict[str, Callable[[], Tensor]] = {
            "fm": lambda: self.products(X),
            "fwfm": lambda: self.weights(self.inner(X)),
            "fmfm": lambda: self.matrices(X),
            "ipnn": lambda: self.deep(torch.cat([x, self.inner(X)], 1)),
            "deepfm": lambda: self.products(X) + self.deep(x),
            "xdeepfm": lambda: self.cin(X) + self.deep(x),
            "dcnv2": lambda: self.fc(torch.cat([self.cross(x), self.deep(x)], 1)),
        }
        logit = terms[self.kind]()
        if hasattr(self, "linear"):
            logit = logit + self.linear(ids)
        return {"y_pred": self.output_activation(logit)}


def _mlp(width: int, out: int | None) -> MLP_Block:
    return MLP_Block(
        input_dim=width,
        output_dim=out,
        hidden_units=list(HIDDEN),
        hidden_activations="ReLU",
        dropout_rates=DROPOUT,
        batch_norm=True,
    )


class Batches:
    """The rows of one split; those to train on in a new order each time."""

    def __init__(self, columns: dict[str, Tensor], *, is_shuffled: bool) -> None:
        self.columns, self.is_shuffled = columns, is_shuffled
        self.rows = len(columns["label"])

    def __len__(self) -> int:
        return -(-self.rows // BATCH)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(self.rows) if self.is_shuffled else torch.arange(self.rows)
        for some in order.split(BATCH):
            yield {name: column[some] for name, column in self.columns.items()}


def _features(directory: str, table_rows: np.ndarray) -> FeatureMap:
    features = FeatureMap("frappe", directory)
    features.default_emb_dim = DIM
    features.labels = ["label"]
    for name, rows in zip(FIELDS, table_rows, strict=True):
        features.features[name] = {
            "source": "",
            "type": "categorical",
            "vocab_size": int(rows),
            "padding_idx": None,
        }
    features.num_fields = features.get_num_fields()
    return features


def run(path: Path, job: Job) -> dict[str, Any]:
    """Train and test once."""
    started = time.perf_counter()
    rows = np.load(path)
    of_split = {}
    for n, name in enumerate(SPLITS):
        here = rows["split"] == n
        ids = torch.from_numpy(rows["ids"][:, here])
        columns = dict(zip(FIELDS, ids, strict=True))
        columns["label"] = torch.from_numpy(rows["label"][here])
        of_split[name] = Batches(columns, is_shuffled=name == "train")
    seed_everything(job["seed"])
    with TemporaryDirectory() as directory:
        (Path(directory) / "frappe").mkdir()
        model = Model(_features(directory, rows["table_rows"]), directory, job)
        curve: list[float] = []
        stop = model.checkpoint_and_earlystop

        def heard(logs: dict[str, float]) -> None:
            curve.append(round(float(logs["AUC"]), 5))
            stop(logs)

        model.checkpoint_and_earlystop = heard
        model.fit(of_split["train"], epochs=EPOCHS, validation_data=of_split["valid"])
        valid, test = (model.evaluate(of_split[name]) for name in ("valid", "test"))
    return {
        "valid_auc": float(valid["AUC"]),
        "valid_logloss": float(valid["logloss"]),
        "test_auc": float(test["AUC"]),
        "test_logloss": float(test["logloss"]),
        "epochs": len(curve),
        "seconds": round(time.perf_counter() - started, 1),
        "curve": curve,
    }


def main() -> None:
    """A line with a job in, a line with its result out."""
    channel = Channel()
    for line in sys.stdin:
        channel.say(**run(Path(sys.argv[1]), json.loads(line)))


if __name__ == "__main__":
    main()
