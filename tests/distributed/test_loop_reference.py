"""`train` on two ranks against a plain program in float64: own rows, own lookup, own optimizers."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prismrec.checkpoint.reader import CheckpointReader
from prismrec.config import Recipe
from prismrec.data.source import open_data
from prismrec.embeddings.sets import EmbeddingSet
from prismrec.models import Inputs, build_model, fields_of, spec_of
from tests.helpers.runs import BATCH, LANES, ROWS, Start, Trained, make_recipe, train_on, write_rows
from tests.helpers.tables import whole_tables
from tests.unit.numbers.rows import num_rows, rows_of

STEPS = 3
KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")
CASES: dict[str, tuple[str, ...]] = {
    f"{layout}-{kind}": (f"embedding.layout='{layout}'", f"embedding.sharding='{kind}'")
    for layout, kind in product(("packed", "separate"), KINDS)
} | {
    "deepfm": (
        "model={name='deepfm', hidden=[8, 8], merge='gate'}",
        "embedding.tables.item={layout='separate', sharding='row_wise', learning_rate=0.1}",
    ),
    "an optimizer for each table": (
        "embedding.tables.user={optimizer={name='sgd', learning_rate=0.3}}",
        "embedding.tables.item={optimizer={name='rowwise_adagrad', learning_rate=0.03}, "
        "layout='separate', sharding='row_wise'}",
        "embedding.tables.tags={learning_rate=0.04, sharding='data_parallel'}",
    ),
    "row state": (
        "model={name='dcnv2', hidden=[8], structure='stacked'}",
        "embedding.layout='separate'",
        "embedding.optimizer={name='rowwise_adagrad', learning_rate=0.05}",
        "tasks=[{name='buy', label='buy', valid='click'}]",
        "evaluate.metric='buy/logloss'",
    ),
}
SETS = (
    "embedding.sets=["
    "{name='wide', dim=16, init_std=0.1},"
    "{name='half', dim=8, init_std=0.1, data_type='fp16'},"
    "{name='some', dim=4, init_std=0.1, features=['seen', 'user']},"
    "{name='quick', dim=8, init_std=0.1, learning_rate=0.05},"
    "{name='plain', dim=4, init_std=0.1, optimizer={name='sgd', learning_rate=0.3}},"
    "{name='means', dim=4, init_std=0.1, pooling='mean', features=['tags', 'seen', 'item']}]",
)
"""Sets of several widths, coverages, types, rates, optimizers and poolings."""
CASES |= {
    "sets packed": SETS,
    "sets separate": (*SETS, "embedding.layout='separate'", "embedding.sharding='row_wise'"),
    "sets spread": (*SETS, "embedding.layout='spread'"),
    "sets auto": (*SETS, "embedding.layout='auto'"),
    "sets mixed": (
        *SETS,
        "model={name='deepfm', hidden=[8, 8]}",
        "embedding.tables.item={layout='separate', sharding='row_wise', data_type='fp16'}",
        "embedding.tables.user={layout='spread'}",
    ),
}
CASES["numbers"] = (
    "model={name='deepfm', hidden=[8, 8]}",
    "features.numbers=[{name='x', encoding={kind='mnse', levels=50, quantiser='linear', low=-1.5, "
    "high=1.5, init_std=0.1}}, {name='size', column='y', encoding={kind='mnse', bases=[3, 2], "
    "levels=16, quantiser='linear', high=2.0, negative='sign'}}]",
    "features.dense=['y']",
    "embedding.tables.mnse_b2={sharding='row_wise'}",
    "embedding.tables.mnse_b3={sharding='data_parallel'}",
    "embedding.tables.mnse_b10={sharding='column_wise', learning_rate=0.1}",
    "embedding.sets=[{name='wide', dim=8}, {name='some', dim=4, features=['user', 'item', 'size', "
    "'tags', 'x::b10']}]",
)
"""`x` is in one set, and its decimal digits in both; a table of digits for each way to place one."""


def recipe_of(data: Path, case: str) -> Recipe:
    return make_recipe(
        data,
        f"train.steps={STEPS}",
        "data.order='file'",
        "train.optimizer={name='adam', learning_rate=0.01, eps=1e-6}",
        *CASES[case],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("reference") / "rows")


@pytest.fixture(scope="module")
def runs(data: Path) -> dict[str, Trained]:
    starts = [Start(recipe_of(data, case), data.parent / case) for case in CASES]
    return dict(zip(CASES, train_on(2, starts), strict=True))


class Reference:
    """The same model in one piece."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.spec = spec_of(recipe, open_data(recipe.data.path).schema)
        torch.manual_seed(recipe.seed)
        self.model = build_model(recipe.model, fields_of(recipe, self.spec)).double()
        self.dense = dict(self.model.named_parameters())
        self.moments = {
            n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in self.dense.items()
        }
        self.forms = {
            f"{t.name}/{s.name}": self.spec.form(t, s)
            for t in self.spec.tables
            for s in self.spec.sets_of(t)
        }
        self.rules = {key: form.optimizer for key, form in self.forms.items()}
        tables = whole_tables(self.spec)
        assert tables.keys() == self.forms.keys()
        self.tables = {
            key: self._stored(key, w.double()).requires_grad_() for key, w in tables.items()
        }
        self.sums = {
            key: torch.zeros(
                len(w), 1 if "rowwise" in self.rules[key].name else w.shape[1]
            ).double()
            for key, w in self.tables.items()
            if self.rules[key].name != "sgd"
        }
        self.step_number = 0

    def _stored(self, key: str, weight: Tensor) -> Tensor:
        return weight.half().double() if self.forms[key].data_type == "fp16" else weight

    def logits(self, rows: list[dict[str, Any]]) -> Tensor:
        """(B, T)."""
        return self.outputs(rows)[0]

    def outputs(self, rows: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T), and auxiliary losses."""
        sets = [self._embed(each, rows) for each in self.spec.sets]
        linear = None
        if self.spec.sets[-1].name == "linear":
            linear = sets.pop()[:, :, : len(self.recipe.tasks)]
        numbers = [[row[name] or 0.0 for name in self.recipe.features.dense] for row in rows]
        dense = torch.tensor(numbers, dtype=torch.float64)
        outputs: tuple[Tensor, dict[str, Tensor]] = self.model(Inputs(sets, linear, dense))
        return outputs

    def step(self, rows: list[dict[str, Any]]) -> float:
        """One step on a global batch; the loss before it."""
        logits, auxiliary = self.outputs(rows)
        total = 0 * logits.sum() + sum(auxiliary.values())
        for t, task in enumerate(self.recipe.tasks):
            inside = [
                r[task.label] is not None and (task.valid is None or r[task.valid] == 1)
                for r in rows
            ]
            labels = torch.tensor([float(r[task.label] or 0) for r in rows]).double()
            losses = F.binary_cross_entropy_with_logits(logits[:, t], labels, reduction="none")
            if any(inside):
                total = total + task.weight * losses[torch.tensor(inside)].mean()
        total.backward()
        self.step_number += 1
        with torch.no_grad():
            self._step_tables()
            self._step_dense()
        return float(total)

    def _embed(self, each_set: EmbeddingSet, rows: list[dict[str, Any]]) -> Tensor:
        fields = []
        for feature in self.recipe.features.sparse:
            if each_set.features is not None and feature.name not in each_set.features:
                continue
            ids = [row[feature.source] for row in rows]
            bags = (
                [[i] for i in ids] if feature.name in ("user", "item") else [i or [] for i in ids]
            )
            table = self.tables[f"{feature.table_name}/{each_set.name}"]
            divisors = [
                max(1, len(bag)) if (each_set.pooling or feature.pooling) == "mean" else 1
                for bag in bags
            ]
            fields.append(
                torch.stack(
                    [
                        self._bag(table, bag, row.get(feature.weights)) / divisor
                        for bag, row, divisor in zip(bags, rows, divisors, strict=True)
                    ]
                )
            )
        ends: dict[str, int] = {}
        numbers = self.recipe.features.numbers
        for number, base in [(each, base) for each in numbers for base in each.encoding.bases]:
            first = ends.get(f"mnse_b{base}", 0)
            ends[f"mnse_b{base}"] = first + num_rows(number.encoding, base)
            if each_set.covers(f"{number.name}::b{base}"):
                table = self.tables[f"mnse_b{base}/{each_set.name}"]
                values = [row[number.source] for row in rows]
                bags = [rows_of(value, number.encoding, base, first) for value in values]
                fields.append(table[torch.tensor(bags)].sum(1))
        embedded = torch.stack(fields, 1)
        assert embedded.shape[2] == each_set.dim
        return embedded

    def _bag(self, table: Tensor, ids: Any, weights: Any) -> Tensor:
        unknown, total = len(table) - 1, table.new_zeros(table.shape[1])
        for index, each in enumerate(ids):
            known = each is not None and 0 <= each < unknown
            total = total + table[each if known else unknown] * (weights[index] if weights else 1)
        return total

    def _step_tables(self) -> None:
        for key, weight in self.tables.items():
            assert weight.grad is not None
            rule, divisor = self.rules[key], torch.ones(1).double()
            if key in self.sums:
                square = weight.grad.square()
                self.sums[key] += square.mean(1, True) if "rowwise" in rule.name else square
                divisor = self.sums[key].sqrt() + rule.eps
            # FBGEMM's CPU kernels round the step of an fp16 weight before they take it.
            step = self._stored(key, rule.learning_rate * weight.grad / divisor)
            weight.copy_(self._stored(key, weight - step))
            weight.grad = None

    def _step_dense(self) -> None:
        chosen, t = self.recipe.train.optimizer, self.step_number
        for name, weight in self.dense.items():
            assert weight.grad is not None
            first, second = self.moments[name]
            first.mul_(chosen.beta1).add_((1 - chosen.beta1) * weight.grad)
            second.mul_(chosen.beta2).add_((1 - chosen.beta2) * weight.grad.square())
            mean, square = first / (1 - chosen.beta1**t), second / (1 - chosen.beta2**t)
            weight -= chosen.learning_rate * mean / (square.sqrt() + chosen.eps)
            weight.grad = None


def rows_of_step(data: Path, step: int) -> list[dict[str, Any]]:
    """Rows that the recipe's order gives to a step: as many from the front of each quarter."""
    rows = pq.read_table(data / "0-train.parquet").to_pylist()
    size, more = divmod(ROWS["train"], LANES)
    starts = [lane * size + min(lane, more) for lane in range(LANES)]
    each = BATCH // LANES
    return [row for start in starts for row in rows[start + step * each :][:each]]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_the_plain_program_trains(
    data: Path, runs: dict[str, Trained], case: str
) -> None:
    run, reference = runs[case], Reference(recipe_of(data, case))
    losses = [reference.step(rows_of_step(data, step)) for step in range(STEPS)]
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert_stored(run, reference)


def assert_stored(run: Trained, reference: Reference) -> None:
    """The tables, weights and optimizer states of a checkpoint are those of the plain program."""
    with CheckpointReader(run.checkpoint) as checkpoint:
        for key, expected in reference.tables.items():
            table, set_name = key.split("/")
            is_half = reference.forms[key].data_type == "fp16"
            _close(checkpoint.table(table, set_name), expected, key, 3e-4 if is_half else 2e-6)
            if key in reference.sums:
                state, sums = checkpoint.table(table, set_name, "accumulator"), reference.sums[key]
                _close(state.view(sums.shape), sums, f"{key}/accumulator", atol=1e-8)
        weights, moments = checkpoint.dense(), checkpoint.dense("dense_optimizer")
        for name, parameter in reference.dense.items():
            _close(weights[f"model.{name}"], parameter, name)
            for state, expected, atol in zip(
                ("exp_avg", "exp_avg_sq"), reference.moments[name], (3e-8, 1e-8), strict=True
            ):  # a gradient is a sum of float32 products, in an order that differs by processor
                _close(moments[f"model.{name}/{state}"], expected, f"{name}/{state}", atol=atol)
            assert moments[f"model.{name}/step"] == STEPS


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_predict_what_the_plain_program_predicts(
    data: Path, runs: dict[str, Trained], case: str
) -> None:
    reference = Reference(recipe_of(data, case))
    for step in range(STEPS):
        reference.step(rows_of_step(data, step))
    held_out: pa.Table = pq.read_table(data.parent / case / "held_out.parquet")
    assert held_out.num_rows >= 32
    tasks = reference.recipe.task_names
    ours = torch.tensor([held_out.column(f"__logit_{task}").to_pylist() for task in tasks]).T
    expected = reference.logits(held_out.to_pylist()).detach()
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=2e-5)


def _close(ours: Tensor, expected: Tensor, name: str, atol: float = 2e-6) -> None:
    torch.testing.assert_close(
        ours.double(),
        expected.detach(),
        rtol=1e-4,
        atol=atol,
        msg=lambda text: f"{name}: {text}",
    )
