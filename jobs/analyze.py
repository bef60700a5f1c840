"""From models and rows to a report: chapter by chapter, written to a directory and kept with the runs."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prismrec
from prismrec.analysis.report.chapter import Chapter
from prismrec.analysis.report.collapse import collapse_chapter
from prismrec.analysis.report.correlation import Asked, correlation_chapter
from prismrec.analysis.report.decorrelation import decorrelation_chapter
from prismrec.analysis.report.discriminability import discriminability_chapter
from prismrec.analysis.report.entanglement import entanglement_chapter
from prismrec.analysis.report.gradients import gradients_chapter
from prismrec.analysis.report.page import Report, csv_name, page
from prismrec.analysis.subject import Progress, Subject
from prismrec.config import UserError
from prismrec.jobs.subjects import OpenedSubject, opened_subjects
from prismrec.tracking.run import MlflowTracker
from prismrec.tracking.uri import resolve_uri

REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be analysed.

    Args:
        models: registry names, run ids or directories; each with rows of `data`.
        data: a data set with the columns and labels of every model.
        out: directory for the report, made if it is not there.
        split: `train`, `valid` or `test` of each model's recipe, or `all`.
        rows: rows to look at, the first ones of the split.
        chapters: keys of the chapters wanted, all if not given.
        fields: the field of the user and that of the item, None for what `paired_fields` finds.
        target: target category that histories are drawn for; the most frequent one if not given.
        uri: tracking URI of the registry and of the runs that keep the report.
    """

    models: tuple[str, ...]
    data: str
    out: Path
    split: str
    rows: int
    chapters: tuple[str, ...]
    fields: tuple[str | None, str | None]
    target: int | None
    uri: str


CHAPTERS: dict[str, Callable[[Sequence[Subject], Request, Progress], Chapter]] = {
    "collapse": lambda subjects, _, progress: collapse_chapter(subjects, progress),
    "entanglement": lambda subjects, request, progress: entanglement_chapter(
        subjects, paired_fields(subjects[0], request.fields), progress
    ),
    "correlation": lambda subjects, request, progress: correlation_chapter(
        subjects, Asked(request.data, target=request.target), progress
    ),
    "experts": lambda subjects, _, progress: decorrelation_chapter(subjects, progress),
    "discriminability": lambda subjects, _, progress: discriminability_chapter(subjects, progress),
    "gradients": lambda subjects, _, progress: gradients_chapter(subjects, progress),
}
"""By key, in the order of the report."""


def analyze(request: Request, progress: Progress) -> dict[str, Any]:
    """Write the report and its numbers, and keep the report with every model's run.

    Args:
        request: what is wanted.
        progress: told what is being done and how far it is.

    Returns:
        The document of `analyze --json`: `report`, `rows`, `seconds`, `models`, `runs` that keep the
        report, and by chapter its `summary` and what is `missing`.

    Raises:
        UserError: a model, the data, the split or a chapter is unknown.
    """
    started = time.perf_counter()
    wanted = _wanted(request.chapters)
    _check_names(request.models)
    opened_all = opened_subjects(
        request.models, request.data, request.split, request.rows, request.uri
    )
    with opened_all as opened:
        subjects = [each.subject for each in opened]
        _check_names([each.name for each in subjects])
        chapters = _chapters(wanted, subjects, request, progress)
        report = Report("What training did", *_described(opened, request), chapters)
        path = _write(report, request.out)
        runs = sorted({each.run for each in opened if each.run is not None})
    kept = [run for run in runs if _keep(request.uri, run, path)]
    return {
        "report": str(path),
        "rows": {each.subject.name: each.subject.num_rows for each in opened},
        "seconds": time.perf_counter() - started,
        "models": [each.subject.name for each in opened],
        "runs": kept,
        "chapters": {
            each.key: {"summary": list(each.summary), "missing": list(each.missing)}
            for each in chapters
        },
    }


def _chapters(
    wanted: Sequence[str], subjects: Sequence[Subject], request: Request, progress: Progress
) -> list[Chapter]:
    """The chapters; what one of several cannot do for a reason of the user's stands in its place.

    Raises:
        UserError: there is no chapter but such ones.
    """
    found, refused = [], []
    for key in wanted:
        try:
            found.append(CHAPTERS[key](subjects, request, progress))
        except UserError as error:
            refused.append(error)
            found.append(Chapter(key, key.capitalize(), (), (), (error.message,)))
    if len(refused) == len(wanted):
        raise refused[0]
    return found


def paired_fields(subject: Subject, wanted: tuple[str | None, str | None]) -> tuple[str, str]:
    """The fields of the user and of the item, those wanted or the likely ones.

    The user is the recipe's group, the item the field of one id in each row with the most rows in its
    table; without a group the user is the next field of that kind. Where there are none, any fields: the
    chapter says what it misses.

    Raises:
        UserError: the model has no field that is wanted.
    """
    spec, user, item = subject.spec, *wanted
    for option, name in (("--user", user), ("--item", item)):
        if name is not None and name not in spec.fields:
            raise UserError(
                f"{option}: {subject.name} has no field '{name}'; it has {', '.join(spec.fields)}"
            )
    sample = next(subject.samples())
    single = [name for name, each in sample.fields.items() if bool((each.lengths == 1).all())]
    single.sort(key=lambda name: -spec.table_of(name).known_rows)
    group = subject.recipe.features.group
    item = item or next((name for name in single if name not in (user, group)), None)
    user = user or next(
        (name for name in [group, *single] if name in single and name != item), None
    )
    user = user or next(name for name in (*spec.fields, None) if name != item)
    item = item or next(name for name in (*reversed(spec.fields), None) if name != user)
    if user is None or item is None or user == item:
        raise UserError(
            f"{subject.name} has no two fields whose vectors could be held against each other; name "
            "them with --user and --item"
        )
    return user, item


def _check_names(models: Sequence[str]) -> None:
    twice = next((each for each in models if models.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"'{twice}' is given twice; name each model once")


def _wanted(chapters: Sequence[str]) -> list[str]:
    unknown = [key for key in chapters if key not in CHAPTERS]
    if unknown:
        raise UserError(f"--chapter: there is no '{unknown[0]}'; there are {', '.join(CHAPTERS)}")
    return [key for key in CHAPTERS if key in chapters or not chapters]


def _described(opened: Sequence[OpenedSubject], request: Request) -> tuple[list[str], list[str]]:
    """Names of the models, and the facts under the title."""
    rows = {each.subject.num_rows for each in opened}
    seen = " / ".join(f"{number:,}" for number in sorted(rows))
    facts = [
        f"{seen} rows of {Path(request.data).name or request.data}, {request.split}",
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        f"prismrec {prismrec.__version__}",
    ]
    many = len(opened) > 1
    names = [
        f"{at}: {each.subject.name}" if many else each.subject.name
        for at, each in enumerate(opened, 1)
    ]
    return names, facts


def _write(report: Report, out: Path) -> Path:
    """The page and, beside it, the numbers of every plot as CSV; the page is whole or not there.

    Numbers of an earlier report in the same directory go.
    """
    numbers = out / "numbers"
    numbers.mkdir(parents=True, exist_ok=True)
    for old in numbers.glob("*.csv"):
        if old.name.partition("-")[0] in CHAPTERS:
            old.unlink()
    for chapter in report.chapters:
        for plot in chapter.plots:
            with (numbers / csv_name(chapter, plot)).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(plot.numbers.columns)
                writer.writerows(plot.numbers.rows)
    path, unfinished = out / REPORT, out / f".{REPORT}"
    unfinished.write_text(page(report), encoding="utf-8")
    unfinished.replace(path)
    return path


def _keep(uri: str, run: str, path: Path) -> bool:
    """Put the report among the artifacts of a run; whether that was done."""
    tracker = MlflowTracker.attach(resolve_uri(uri), run)
    tracker.log_file(path, "analysis")
    return tracker.close()
