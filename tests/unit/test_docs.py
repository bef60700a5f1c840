"""Pages that repeat what the code or another file says must agree with it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from prismrec.cli.main import app
from prismrec.config import Recipe, load
from prismrec.config.models import BUILT_IN, Custom
from prismrec.config.section import Section
from prismrec.data.adapters import ADAPTERS
from prismrec.data.building.plan import BuildPlan
from prismrec.data.schema import Kind
from prismrec.jobs.tune.space import WAYS
from tests.helpers.source_tree import ROOT

FOLDERS = ("platform", "embeddings", "models", "jobs", "cluster", "tests")
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
GENERATED = ("docs/recipes.md",)
WRITTEN = [path for path in PAGES if str(path.relative_to(ROOT)) not in GENERATED]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:\w+=\S+ )*prismrec (.*)")
_KEY = re.compile(r"([a-z_]+(?:\.[\w]+)+)(?: = .*)?")
_FILE = re.compile(r"[\w/]+\.(py|md|toml|json|jsonl|png|parquet|txt|csv|safetensors)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(path.read_text()) if kind == language]


def _prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def _spans(path: Path) -> list[str]:
    return _CODE.findall(_prose(path))


def test_dependencies_page_has_a_line_for_every_requirement() -> None:
    required = {
        re.split(r"[\[<>=! ]", line)[0]
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
        if line.strip() and not line.startswith(("#", "-"))
    }
    page = (ROOT / "docs/dependencies.md").read_text()
    described = re.findall(r"^\| `([\w.-]+)` \| \S.* \| \S.* \|$", page, flags=re.MULTILINE)
    assert sorted(described) == sorted(required)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", _prose(path))):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(link)
    assert broken == []


def _anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", _prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_anchors_are_made_as_on_the_web(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A: `b.c`, d\n```\n# no heading\n```\n## Any-way you\n")
    assert _anchors(page) == {"a-bc-d", "any-way-you"}


def _commands(path: Path) -> Iterator[list[str]]:
    """The words after `prismrec` of every command in a page's shell blocks."""
    for block in _blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            found = _COMMAND.fullmatch(line.partition(" > ")[0])
            if found is not None:
                yield shlex.split(found[1], comments=True)


def _find(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words that are left."""
    command: Any = typer.main.get_command(app)
    left = list(words)
    while hasattr(command, "commands"):
        while left and left[0].startswith("-"):
            known = {name for each in command.params for name in each.opts}
            assert left[0] in {*known, "-h", "--help"}, f"prismrec has no option {left[0]}"
            left.pop(0)
        if not left:
            break
        assert left[0] in command.commands, f"no command {left[0]!r} in {words}"
        command = command.commands[left.pop(0)]
    return command, left


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_commands_in_blocks_parse(path: Path) -> None:
    for words in _commands(path):
        command, left = _find(words)
        parsed = command.make_context("prismrec", left).params
        recipe = parsed.get("recipe")
        if recipe is not None and (ROOT / recipe).is_file():
            load(ROOT / recipe, parsed["overrides"] or ())


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_commands_in_the_text_exist_and_have_their_options(path: Path) -> None:
    for span in _spans(path):
        words = span.split()
        if words[0] != "prismrec" or len(words) == 1:
            continue
        command, left = _find(words[1:])
        known = {name for each in command.params for name in each.opts} | {"--help"}
        assert {word for word in left if word.startswith("--")} <= known, span


def test_a_command_that_is_none_is_seen() -> None:
    with pytest.raises(AssertionError, match="no command 'trian'"):
        _find(["trian", "x.toml"])
    command, left = _find(["data", "synth", "out", "--rowz", "3"])
    with pytest.raises(Exception, match="No such option: --rowz"):
        command.make_context("synth", left)


def _sections(annotation: Any) -> list[type[Section]]:
    """Section classes anywhere in a type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [*BUILT_IN.values(), Custom] if annotation is Section else [annotation]
    return [each for part in typing.get_args(annotation) for each in _sections(part)]


def _knows(sections: Sequence[type[Section]], key: Sequence[str]) -> bool:
    """Whether some section has a field at the dotted key."""
    if not key:
        return True
    for section in sections:
        field = section.model_fields.get(key[0])
        if field is None:
            continue
        by_name = _is_by_name(field.annotation)
        rest = key[2:] if by_name else key[1:]
        inner = _sections(field.annotation)
        if not rest or (inner and _knows(inner, rest)):
            return True
        if by_name and not inner:
            return True
    return False


def _is_by_name(annotation: Any) -> bool:
    """Whether a type is a mapping by names that the user chooses, or may be one."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_by_name(each) for each in inner)
    return _is_by_name(inner[0]) if origin is typing.Annotated else origin is dict


@pytest.mark.parametrize(
    ("key", "is_known"),
    [
        ("data.splits.train", True),
        ("embedding.tables.user.rows", True),
        ("embedding.tables.user.row", False),
        ("model.num_cross_layers", True),
        ("model.layers", False),
        ("model.groups.mine", True),
        ("tasks.weight", True),
        ("train.step", False),
        ("train.steps.more", False),
    ],
)
def test_keys_of_the_schema(key: str, is_known: bool) -> None:
    assert _knows([Recipe], key.split(".")) == is_known


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_recipe_keys_exist(path: Path) -> None:
    unknown = []
    for span in _spans(path):
        match = _KEY.fullmatch(span)
        if match is None or _FILE.fullmatch(match[1]):
            continue
        key = match[1].split(".")
        if key[0] in Recipe.model_fields and not _knows([Recipe], key):
            unknown.append(span)
    assert unknown == []


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_recipe_parts_in_blocks_have_real_keys(path: Path) -> None:
    for block in _blocks(path, "toml"):
        tree = tomllib.loads(block)
        if "rows" in tree:
            BuildPlan.model_validate(tree)
            continue
        keys = list(_leaves(tree))
        if all(key[-1] in WAYS for key in keys):  # the space of a search
            keys = [key[:-1] for key in keys]
        assert [key for key in keys if not _knows([Recipe], key)] == []


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        key = (*above, name)
        tables = (
            [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
        )
        if isinstance(value, dict):
            tables = [value]
        if not tables:
            yield key
        for table in tables:
            yield from _leaves(table, key)


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_python_snippets_compile_and_import_what_there_is(path: Path) -> None:
    for block in _blocks(path, "python"):
        compile(block, _name(path), "exec")
        for module, names in re.findall(r"^from (prismrec\S*) import (.+)$", block, re.MULTILINE):
            loaded = importlib.import_module(module)
            missing = [each for each in names.split(", ") if not hasattr(loaded, each)]
            assert missing == [], module


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_json_snippets_are_json(path: Path) -> None:
    for block in _blocks(path, "json"):
        json.loads(block)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_top_folder_says_what_it_holds(folder: str) -> None:
    page = ROOT / folder / "README.md"
    lines = page.read_text().splitlines()
    assert lines[0] == f"# {folder}"
    assert len(lines) <= 60, "one page"
    names = {path.name for path in (ROOT / folder).rglob("*.*")}
    for span in _spans(page):
        if _FILE.fullmatch(span):
            is_there = any((each / span).is_file() for each in (ROOT, ROOT / folder))
            assert is_there or span in names, f"there is no {span}"


def test_pages_list_everything_there_is_to_choose() -> None:
    data = set(_spans(ROOT / "docs/data.md"))
    assert set(ADAPTERS) | set(typing.get_args(Kind)) <= data
    assert set(BUILT_IN) <= set(_spans(ROOT / "docs/training.md"))
    recipes = {f"recipes/{path.name}" for path in (ROOT / "jobs/recipes").glob("*.toml")}
    assert recipes <= set(_spans(ROOT / "jobs/README.md"))
    docs = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {
        name for name in docs if f"docs/{name}" not in (ROOT / "README.md").read_text()
    } == set()


def test_the_picture_is_drawn_for_light_and_dark() -> None:
    picture = (ROOT / "docs/overview.svg").read_text()
    assert "prefers-color-scheme: dark" in picture
    assert "<title" in picture
    for word in (
        "Parquet",
        "lanes",
        "Batch",
        "embedding sets",
        "experts",
        "gates",
        "towers",
        "logits",
    ):
        assert f"{word}</text>" in picture
