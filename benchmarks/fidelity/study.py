"""What a study is: variants of a recipe trained on the same rows with the same budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.channel import ROOT
from prismrec.config import Recipe, UserError, load
from prismrec.data.source import open_data
from prismrec.data.world import write_world
from prismrec.data.world_truth import WorldOptions
from prismrec.train.tracker import Probe

HERE = Path(__file__).parent
WORLD_RECIPE = HERE / "world.toml"
"""The recipe that studies on the synthetic world change."""
KUAIRAND_RECIPE = ROOT / "jobs" / "recipes" / "kuairand" / "me_dcnv2.toml"
QUICK_ROWS, QUICK_STEPS, QUICK_SEEDS = 2_000, 2, (1,)
SPEED = ("examples_per_second", "seconds")
"""What a run records of its speed."""

SMALL_WORLD = WorldOptions(num_users=800, num_items=500)
"""Few enough ids for their vectors to be learnt from few rows."""

_FIXED = ("train.device='cpu'", "train.precision='fp32'", "tracking.registry_name=''")


@dataclass(frozen=True)
class World:
    """A synthetic world; the same numbers give the same rows.

    Args:
        rows: exposures in all; days 0 to 4 of seven are trained on.
        seed: of everything drawn.
        options: what else is turned.
    """

    rows: int = 100_000
    seed: int = 1
    options: WorldOptions = field(default_factory=lambda: SMALL_WORLD)

    def quick(self) -> World:
        """A tiny world of the same laws."""
        return World(QUICK_ROWS, self.seed, self.options)

    def key(self) -> str:
        """A name that another world does not have."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"world-{self.rows}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def path(self, folder: Path) -> Path:
        """Its directory below `folder`, written if it is not there."""
        out = folder / self.key()
        if not out.exists():
            write_world(out, self.rows, 7, self.seed, self.options)
        return out


@dataclass(frozen=True)
class Prepared:
    """A data set that the user prepared, at a path that an option names.

    Args:
        name: of the adapter, and of the directory below `--prepared`.
    """

    name: str

    def path(self, folder: Path) -> Path:
        """Its directory below `folder`.

        Raises:
            UserError: nothing is there.
        """
        out = folder / self.name
        if not out.is_dir():
            raise UserError(
                f"{out}: no such data set; make it with `prismrec data prepare {self.name} --out {out}`, "
                "or say with --prepared where it lies"
            )
        return out


Data = World | Prepared


@dataclass(frozen=True)
class Variant:
    """One recipe of a study.

    Args:
        name: unique in the study; the row of the table.
        changes: `section.key=value`, on top of the recipe.
        data: what it is trained and tested on.
        recipe: TOML file.
        group: the line of the plots it belongs to; its name if not given.
        at: where on the line, such as a multiple of the parameters; None for studies without one.
        block: variants of a block are compared with each other and share a plot, such as a data set.
    """

    name: str
    changes: tuple[str, ...] = ()
    data: Data = field(default_factory=World)
    recipe: Path = WORLD_RECIPE
    group: str = ""
    at: float | None = None
    block: str = ""

    @property
    def line(self) -> str:
        """The line of the plots it belongs to."""
        return self.group or self.name


@dataclass(frozen=True)
class Column:
    """A number of the table, over the seeds.

    Args:
        metric: name of what a run recorded, such as `test/like/auc`.
        title: head of the column.
        digits: after the point.
        over: group whose mean at the same block and place is taken off, "" for the number itself.
        scale: factor on the number.
    """

    metric: str
    title: str
    digits: int = 4
    over: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Panel:
    """A plot of one column.

    Args:
        column: title of the column.
        label: of the vertical axis; the column's title if not given.
    """

    column: str
    label: str = ""


@dataclass(frozen=True)
class Study:
    """A comparison, its page and its plots.

    Args:
        name: of the module, and of the page `fidelity_NAME.md`.
        title: head of the page.
        setup: what is compared and how, in Markdown.
        claim: what the papers say, in Markdown.
        variants: in the order of the table.
        columns: of the table.
        panels: plots, one row of them for each block.
        across: what `Variant.at` counts, label of the horizontal axis.
        log_across: whether that axis doubles.
        probe: looks at the tables after each evaluation; its numbers are kept by their names.
        inspect: looks at the chosen checkpoint after training; its numbers are kept by their names.
        keep: beginnings of names of logged numbers to keep, as means over the run.
        bootstrap: resamples behind `test/TASK/auc_low` and `auc_high`; 0 for none.
    """

    name: str
    title: str
    setup: str
    claim: str
    variants: Sequence[Variant]
    columns: Sequence[Column]
    panels: Sequence[Panel]
    across: str = ""
    log_across: bool = False
    probe: Probe | None = None
    inspect: Callable[[Path, Recipe], Mapping[str, float]] | None = None
    keep: tuple[str, ...] = ()
    bootstrap: int = 0

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"study {self.name}: variants named twice: {', '.join(twice)}")
        titles = [column.title for column in self.columns]
        unknown = [panel.column for panel in self.panels if panel.column not in titles]
        if unknown:
            raise ValueError(f"study {self.name}: panels of no column: {', '.join(unknown)}")


def recipe_of(study: Study, variant: Variant, seed: int, data: Path | str = "out") -> Recipe:
    """The resolved recipe of a variant: fp32 on one CPU process, nothing registered.

    `{data}` in a change stands for the directory of the rows.
    """
    given = (f"data.path='{data}'", f"seed={seed}", f"evaluate.bootstrap={study.bootstrap}")
    changes = [change.replace("{data}", str(data)) for change in variant.changes]
    return load(variant.recipe, [*_FIXED, *given, *changes])


def digest(recipe: Recipe, data: Data, path: Path) -> str:
    """What a finished run is known by: all of the recipe that matters, rows and seed.

    Keys at their defaults do not count, so that a key that is new to recipes changes nothing.
    """
    unimportant = {"name", "out", "tracking", "workers", "model"}
    tree = recipe.model_dump(mode="json", exclude_defaults=True, exclude=unimportant)
    tree["model"] = recipe.model.model_dump(mode="json", exclude_defaults=True)
    tree["seed"] = recipe.seed
    tree["data"]["path"] = data.key() if isinstance(data, World) else open_data(path).fingerprint
    text = json.dumps(tree, sort_keys=True).replace(str(path), "")  # files beside the rows
    return hashlib.sha256(text.encode()).hexdigest()[:16]
