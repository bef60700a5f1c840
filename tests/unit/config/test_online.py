from __future__ import annotations

from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.jobs.online import run_online
from prismrec.jobs.resume import check_resumable
from prismrec.jobs.run import Options
from tests.helpers.runs import make_recipe
from tests.helpers.streams import stream_recipe


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (
            ["features={sparse = ['user']}", "data.order=shuffle"],
            r"features\.time: \[online\] cuts windows by the column",
        ),
        (["online.deltas=true"], r"embedding\.track_touched: online\.deltas = true"),
        (["online.metric=click/acu"], r"online\.metric: unknown metric 'click/acu'.*click/auc"),
        (["online.window=0"], r"online\.window"),
    ],
)
def test_what_a_recipe_of_a_stream_lacks(tmp_path: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        stream_recipe(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("calibration={method = 'platt'}", r"data\.splits\.valid|calibration"),
        ("train.epochs=2", r"train\.epochs: reads the rows again, and a stream has no end"),
        ("train.steps=2", r"train\.steps: ends a run over a data set"),
        ("train.schedule={decay = 'cosine'}", r"train\.schedule\.decay: needs decay_steps"),
        ("evaluate.frequency_of=user", r"evaluate\.frequency_of: counts all training rows"),
    ],
)
def test_what_a_stream_cannot_have(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        run_online(stream_recipe(tmp_path, override), Options())


def test_a_recipe_without_a_window_is_no_stream(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs a section \[online\] with the length of a window"):
        run_online(make_recipe(tmp_path), Options())


def test_only_the_length_of_a_window_is_fixed_on_a_resume(tmp_path: Path) -> None:
    before = stream_recipe(tmp_path)
    check_resumable(before, stream_recipe(tmp_path, "online.late=skip"), tmp_path)
    with pytest.raises(UserError, match=r"--resume: online\.window differs"):
        check_resumable(before, stream_recipe(tmp_path, "online.window=7"), tmp_path)
