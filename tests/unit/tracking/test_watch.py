"""Following an alias over a real registry: taken over once, kept where that fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prismrec.config import UserError
from prismrec.config.train import TrackingSection
from prismrec.tracking import watch
from prismrec.tracking.registry import Registry, ResolvedModel
from prismrec.tracking.watch import AliasWatch
from tests.unit.tracking.test_registry import register


def test_an_alias_is_followed(
    section: TrackingSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(section, tmp_path / "a", auc=0.7)
    second = register(section, tmp_path / "b", auc=0.71)
    registry = Registry(section.uri)
    taken: list[int] = []
    failures: list[str] = []
    is_broken = True

    def take_over(found: ResolvedModel) -> None:
        assert found.version is not None
        assert found.is_bundle
        if is_broken:
            raise UserError("damaged")
        taken.append(found.version.version)

    def failed() -> None:
        failures.append("once")

    following = AliasWatch(registry, "models:/ctr@champion", 1, take_over, failed)
    assert not following.look()
    registry.promote(second.uri, "click/auc")
    assert not following.look()
    assert not following.look()  # it is not loaded again and again
    assert (following.version, taken, len(failures)) == (1, [], 1)
    monkeypatch.setattr(watch, "RETRY_S", 0.0)
    is_broken = False
    assert following.look()
    assert not following.look()
    assert (following.version, taken, len(failures)) == (2, [2], 1)

    gone = AliasWatch(registry, "models:/ctr@nobody", 1, take_over, failed)
    assert not gone.look()
    assert len(failures) == 2


def test_a_refused_version_is_fetched_once_and_let_go_of(
    section: TrackingSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(section, tmp_path / "a", auc=0.7)
    second = register(section, tmp_path / "b", auc=0.71)
    registry = Registry(section.uri)
    registry.promote(second.uri, "click/auc")
    held: list[str] = []
    let_go: list[str] = []

    @contextmanager
    def resolve(model: str) -> Iterator[ResolvedModel]:
        held.append(model)
        yield ResolvedModel(tmp_path, registry.show(model))
        let_go.append(model)

    tries: list[ResolvedModel] = []

    def refuse(found: ResolvedModel) -> None:
        tries.append(found)
        raise UserError("damaged")

    monkeypatch.setattr(registry, "resolve", resolve)
    monkeypatch.setattr(watch, "RETRY_S", 0.0)
    following = AliasWatch(registry, "ctr@champion", 1, refuse, lambda: None)
    for _ in range(3):
        assert not following.look()
    assert (len(tries), held, let_go) == (3, [second.uri], [])
    registry.promote(first.uri, "click/auc", force=True)
    assert not following.look()
    assert let_go == [second.uri]
    registry.promote(second.uri, "click/auc", force=True)
    assert not following.look()
    following.stop()
    assert held == let_go == [second.uri] * 2
    taking = AliasWatch(registry, "ctr@champion", 1, tries.append, lambda: None)
    assert taking.look()
    assert held == let_go == [second.uri] * 3


def test_it_looks_by_itself(section: TrackingSection, tmp_path: Path) -> None:
    register(section, tmp_path / "a", auc=0.7)
    seen = threading.Event()
    following = AliasWatch(
        Registry(section.uri), "ctr@champion", 7, lambda _: seen.set(), lambda: None
    )
    following.start(0.01)
    assert seen.wait(60)
    following.stop()
    assert following.version == 1
