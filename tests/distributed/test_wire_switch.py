"""Training sends vectors in the small type; evaluation and held-out rows see them as they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.runs import Start, make_recipe, train_one, write_rows

WIRES = {
    "fp32": ("embedding.sharding='table_wise'",),
    "int8": ("embedding.sharding='table_wise'",),
    "bf16": ("embedding.sharding='table_wise'",),
    "fp16": ("embedding.sharding='row_wise'",),
}
"""Recipe changes by type of the vectors; fp16 travels in parts that are added up."""
LEAST = 1e-6
"""What a training step's logits differ by at least where vectors are rounded."""


class Seen(NamedTuple):
    """Of one type, by one rank.

    Args:
        trained: the loss of every step, empty but on rank 0.
        evaluated: logits of a batch in evaluation.
        stepped: the same batch's in training mode, before that evaluation.
        after: the same again after it.
    """

    trained: list[float]
    evaluated: np.ndarray
    stepped: np.ndarray
    after: np.ndarray


def _logits(start: Start) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of fresh weights and one batch: in evaluation, in a training step before, and in one after."""
    from prismrec.data.source import open_data
    from prismrec.models import spec_of
    from prismrec.train.evaluate import evaluation_mode, predict_batch
    from prismrec.train.feed import Splits
    from prismrec.train.process_group import process_group
    from prismrec.train.sharding import shard_model

    source = open_data(start.recipe.data.path)
    with process_group("cpu") as ranks:
        spec = spec_of(start.recipe, source.schema)
        sharded = shard_model(start.recipe, spec, ranks, is_bf16=False, total_steps=5)
        batch = next(iter(Splits(start.recipe, source, ranks).batches("test")))
        stepped = predict_batch(sharded, batch)
        with evaluation_mode(sharded):
            evaluated = predict_batch(sharded, batch)
        after = predict_batch(sharded, batch)
        return evaluated.numpy(), stepped.numpy(), after.numpy()


def see(starts: list[Start]) -> list[Seen]:
    """What each recipe gives on this rank.

    Collective: every rank calls it.
    """
    losses = [list(train_one(start).log.get("train/loss", {}).values()) for start in starts]
    return [Seen(each, *_logits(start)) for each, start in zip(losses, starts, strict=True)]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Start]:
    place = tmp_path_factory.mktemp("wire")
    data = write_rows(place / "rows")
    return {
        wire: Start(
            make_recipe(
                data,
                "workers.count=2",
                "train.steps=6",
                f"embedding.communication.forward={wire}",
                *changes,
            ),
            place / wire,
        )
        for wire, changes in WIRES.items()
    }


@pytest.fixture(scope="module")
def seen(starts: dict[str, Start]) -> dict[str, list[Seen]]:
    """By type, what each rank saw."""
    ranks = run_ranks(see, 2, list(starts.values()))
    return {wire: [rank[i] for rank in ranks] for i, wire in enumerate(starts)}


@pytest.mark.parametrize("wire", ["int8", "bf16", "fp16"])
def test_only_training_rounds(wire: str, seen: dict[str, list[Seen]]) -> None:
    for ours, plain in zip(seen[wire], seen["fp32"], strict=True):
        np.testing.assert_allclose(ours.evaluated, plain.evaluated, rtol=0, atol=1e-6)
        assert np.abs(ours.stepped - ours.evaluated).max() > LEAST
        np.testing.assert_array_equal(ours.after, ours.stepped)
    ours, plain = seen[wire][0], seen["fp32"][0]
    assert len(ours.trained) == 6
    assert np.abs(np.subtract(ours.trained, plain.trained)).max() > LEAST
    np.testing.assert_allclose(ours.trained, plain.trained, rtol=0.02)
    np.testing.assert_array_equal(seen["fp32"][0].stepped, seen["fp32"][0].evaluated)


@pytest.mark.parametrize("wire", list(WIRES))
def test_held_out_rows_are_those_of_a_local_lookup(
    wire: str, starts: dict[str, Start], seen: dict[str, list[Seen]]
) -> None:
    from prismrec.checkpoint import latest
    from prismrec.jobs.publish import bundle_of_checkpoint, read_held_out
    from prismrec.serving.inference import InferenceModel
    from prismrec.serving.parity import check_parity
    from prismrec.train.run_files import RunFiles

    assert seen[wire]
    files, recipe = RunFiles(starts[wire].directory), starts[wire].recipe
    checkpoint = latest(files.checkpoints)
    assert checkpoint is not None
    held_out = read_held_out(files.held_out, recipe)
    bundle = bundle_of_checkpoint(checkpoint, files.bundle)
    logits = InferenceModel.load(bundle).predict_logits(held_out.columns)
    assert len(logits) > 16
    torch.testing.assert_close(logits, held_out.logits, rtol=0, atol=1e-5)
    check_parity(logits, held_out.logits)
