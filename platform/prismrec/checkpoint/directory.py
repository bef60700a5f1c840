"""A directory of checkpoints: their names, which are whole, which is newest or best, which go."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prismrec.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from prismrec.config import UserError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^step-([0-9]{8,})(-r[0-9]+)?$")
_UNFINISHED = ".tmp-"


@dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints stay when a new one is whole.

    Args:
        keep_last: how many of the newest stay, at least 1.
        keep_best: whether the one with the highest metric stays too.
    """

    keep_last: int = 2
    keep_best: bool = True


def latest(directory: str | Path) -> Path | None:
    """The newest whole checkpoint; None if there is none.

    One with a damaged manifest, or with a file missing or of another size, is passed over with a
    warning. Newest is the last one saved, also after a run went back to an earlier step.
    """
    found = checkpoints(Path(directory))
    return found[-1][0] if found else None


def best(directory: str | Path) -> Path | None:
    """The whole checkpoint with the highest metric, the newer of equals; None if none has one."""
    return _best(checkpoints(Path(directory)))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at a path: itself, or the best (else the newest) of a run's directory.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return path
    for directory in (path / "checkpoints", path):
        chosen = best(directory) or latest(directory)
        if chosen is not None:
            return chosen
    raise UserError(f"{path}: neither a checkpoint nor the directory of a run with one")


def checkpoints(directory: Path) -> list[tuple[Path, Manifest]]:
    """Every whole checkpoint with its manifest, in the order they were saved."""
    found = []
    for path in _named(directory):
        try:
            found.append((path, read_whole(path)))
        except UserError as error:
            _log.warning("%s is passed over: %s", path, error)
    return sorted(found, key=lambda item: (item[1].sequence, item[1].step))


def read_whole(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, at their sizes.

    Raises:
        UserError: the manifest is missing or damaged, or a file is missing or of another size.
    """
    manifest = read_manifest(path)
    for name, entry in {**manifest.files, **manifest.copies}.items():
        check_size(path / name, entry.size)
    return manifest


def check_size(file: Path, size: int) -> None:
    """Refuse a data file that is missing or not `size` bytes long.

    Raises:
        UserError: it is.
    """
    try:
        actual = file.stat().st_size
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); the checkpoint is damaged, use another"
        ) from error
    if actual != size:
        raise UserError(
            f"{file}: {actual} bytes, {size} were written; the checkpoint is damaged, use another"
        )


def unfinished_path(directory: Path, step: int, save_id: str) -> Path:
    """Where a save of a step is written until it is whole."""
    return directory / f"step-{step:08d}{_UNFINISHED}{save_id}"


def free_path(directory: Path, step: int) -> Path:
    """A name for a checkpoint of a step that no other has: an earlier one of that step stays."""
    path, revision = directory / f"step-{step:08d}", 1
    while path.exists():
        revision += 1
        path = directory / f"step-{step:08d}-r{revision}"
    return path


def find_save(directory: Path, step: int, save_id: str) -> Path | None:
    """The checkpoint that one very save made, or None."""
    for path in _named(directory):
        if path.name.startswith(f"step-{step:08d}"):
            try:
                manifest = read_manifest(path)
            except UserError:
                continue
            if manifest.save_id == save_id:
                return path
    return None


def remove_unfinished(directory: Path) -> None:
    """Remove what saves that never became whole have left. Only before a save begins."""
    for path in directory.glob(f"step-*{_UNFINISHED}*"):
        _log.info("removing the unfinished checkpoint %s", path)
        shutil.rmtree(path, ignore_errors=True)


def prune(directory: Path, retention: Retention, newest: Path) -> None:
    """Remove the whole checkpoints that need not stay; `newest` always does."""
    found = checkpoints(directory)
    stay = {newest, *(path for path, _ in found[-retention.keep_last :])}
    if retention.keep_best:
        stay |= {_best(found) or newest}
    for path, manifest in found:
        if path in stay:
            continue
        # Under its own name, a half-removed checkpoint would stay for ever: nobody could tell
        # it from one that somebody damaged.
        leaving = unfinished_path(directory, manifest.step, f"removed-{manifest.sequence}")
        path.rename(leaving)
        shutil.rmtree(leaving)


def _best(found: list[tuple[Path, Manifest]]) -> Path | None:
    scored = [(manifest.metric, path) for path, manifest in found if manifest.metric is not None]
    top = max((metric for metric, _ in scored), default=None)
    return next((path for metric, path in reversed(scored) if metric == top), None)


def _named(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if _NAME.match(path.name))
