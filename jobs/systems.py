"""The systems that this package has by name: what each is, where it comes from and how large it is.

A system has two recipes, `recipes/world/NAME.toml` on the synthetic world and
`recipes/kuairand/NAME.toml` on KuaiRand-Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prismrec.config import Recipe, UserError, load
from prismrec.data.encode.copies import named_files
from prismrec.data.schema import DataSchema
from prismrec.data.source import read_schema
from prismrec.data.world import world_schema
from prismrec.models import build_model, fields_of, spec_of

WORLD_ROWS, WORLD_DAYS, WORLD_SEED = 50_000, 7, 1
"""The world that the recipes name: `prismrec data synth out/world --rows 50000 --days 7 --seed 1`."""


@dataclass(frozen=True, slots=True)
class System:
    """A named system.

    Args:
        name: of its recipes.
        line: what it is, in one line.
        source: the paper it comes from, or what it stands for.
    """

    name: str
    line: str
    source: str


@dataclass(frozen=True, slots=True)
class SystemSize:
    """What a system comes to in a recipe.

    Args:
        system: the system.
        recipe: path of the recipe.
        dense: parameters that every rank holds.
        table: numbers in the tables; None, like `dense`, where the size of the data is not known or a
            file that ids or numbers are read by is not there.
    """

    system: System
    recipe: str
    dense: int | None
    table: int | None

    def row(self) -> dict[str, Any]:
        """Everything by name."""
        return {
            **asdict(self.system),
            "recipe": self.recipe,
            "dense": self.dense,
            "table": self.table,
        }


IPA = "Kang et al., Towards unifying feature interaction models for click-through rate prediction, 2024"
GWPFM = "Pan et al., Ads recommendation in a collapsed and entangled world, KDD 2024"

SYSTEMS: tuple[System, ...] = (
    System("lr", "a weight for every id", "logistic regression"),
    System("fm", "first order and all pairwise products", "Rendle, ICDM 2010"),
    System("dnn", "an MLP on the vectors", "multi-layer perceptron"),
    System("wide_deep", "first order beside an MLP", "Cheng et al., DLRS 2016"),
    System("deepfm", "FM and an MLP on the same vectors", "Guo et al., IJCAI 2017"),
    System("dcn", "cross layers with a vector each, beside an MLP", "Wang et al., ADKDD 2017"),
    System("dcnv2", "cross layers with a matrix each, beside an MLP", "Wang et al., WWW 2021"),
    System("ffm", "FM with a slot of a vector for each partner", "Juan et al., RecSys 2016"),
    System("fwfm", "FM with a weight for each pair", "Pan et al., WWW 2018"),
    System("fvfm", "FM with a vector of weights for each pair", "Sun et al., WWW 2021"),
    System("fmfm", "FM with a matrix for each pair", "Sun et al., WWW 2021"),
    System("gwpfm", "FM with a slot for each part and a weight for two groups", GWPFM),
    System("ipnn", "an MLP on the vectors and their inner products", "Qu et al., ICDM 2016"),
    System("xdeepfm", "first order, a CIN and an MLP", "Lian et al., KDD 2018"),
    System("wfl", "layers of products: weighted, a weight per layer", IPA),
    System("dfl", "layers of products: diagonal, a weight per layer", IPA),
    System("pfl", "layers of products: projected, a weight per layer", IPA),
    System("pft", "layers of products: projected, a weight per term", IPA),
    System("pfe", "layers of products: projected, a weight per element", IPA),
    System("pfd", "layers of products: projected, added up as they are", IPA),
    System("din", "an attention network weighs behaviours by the target", "Zhou et al., KDD 2018"),
    System(
        "tim",
        "temporal interest: attention and sum of behaviours by target, position and interval",
        "Zhou et al., Temporal interest network, WWW 2024",
    ),
    System(
        "dare",
        "attention and representation of behaviours by two sets of different width",
        "Feng et al., Long-sequence recommendation models need decoupled embeddings, ICLR 2025",
    ),
    System(
        "me_dcnv2",
        "multi-embedding: a DCN-v2 on each of several sets",
        "Guo et al., On the embedding collapse when scaling up recommendation models, ICML 2024",
    ),
    System(
        "mnse",
        "numbers by their digits in several numeral systems, below a DCN-v2",
        "Pan et al., Ads recommendation in a collapsed and entangled world, KDD 2024",
    ),
    System(
        "semantic_ids",
        "a DCN-v2 whose items have rows of their codes' prefixes beside their own",
        "prefix n-grams of semantic ids, arXiv:2504.02137",
    ),
    System(
        "see",
        "similarities of vectors learnt elsewhere, as digits, below a DCN-v2",
        "Pan et al., Ads recommendation in a collapsed and entangled world, KDD 2024",
    ),
    System(
        "ranknet",
        "a cross-entropy beside pairs of the whole batch, calibrated",
        "Lin et al., Understanding the ranking loss for recommendation with sparse user feedback, KDD 2024",
    ),
    System(
        "jrc",
        "two logits per task, a cross-entropy beside a generative loss",
        "Sheng et al., Joint optimization of ranking and calibration, KDD 2023",
    ),
    System("shared_bottom", "one expert for all tasks, a tower for each", "Caruana, 1997"),
    System("moe", "experts under one gate, a tower for each task", "Jacobs et al., 1991"),
    System("mmoe", "experts under a gate for each task", "Ma et al., KDD 2018"),
    System("cgc", "experts of all tasks and of each", "Tang et al., RecSys 2020"),
    System("ple", "the same in layers, with a shared stream", "Tang et al., RecSys 2020"),
    System(
        "stem", "a set for each task and a shared one, strict isolation", "Su et al., AAAI 2024"
    ),
    System("stem_al", "a main set and one for auxiliary tasks", "Pan et al., KDD 2024"),
    System("ame", "shared sets of different width under gates", "Pan et al., KDD 2024"),
    System("crocodile", "covariance loss, element-wise gates on a prior", "Lin et al., 2024"),
    System("hetero_me", "a different interaction for each expert and set", "Pan et al., KDD 2024"),
    System("dmoe", "the same, experts kept apart by their correlation", "arXiv 2505.17925"),
    System(
        "pepnet",
        "inputs gated by domain, hidden units by prior features",
        "Chang et al., PEPNet, KDD 2023",
    ),
    System(
        "star",
        "a network per domain, the shared one times factors of its own",
        "Sheng et al., One model to serve all, CIKM 2021",
    ),
    System(
        "d_train",
        "one head, then a head for each domain, then the heads alone",
        "Wang et al., Decoupled training, AAAI 2024",
    ),
    System(
        "esmm",
        "tasks in a row whose probabilities multiply",
        "Ma et al., Entire space multi-task model, SIGIR 2018",
    ),
    System(
        "aitm",
        "tasks in a row, each attending to the one before it",
        "Xi et al., Modeling the sequential dependence among audience multi-step conversions, KDD 2021",
    ),
)
"""Every named system, in the order in which they are listed."""


def sizes(name: str, data: Path | None = None) -> Iterator[SystemSize]:
    """Every system with the size it has in the recipes of a folder.

    Args:
        name: folder under `recipes`: "world" or "kuairand".
        data: data set that gives the numbers of ids; that which the recipes name if not given. For
            the world it need not be there.

    Raises:
        UserError: there is no such folder, or `data` is no data set.
    """
    with as_file(files("prismrec.jobs") / "recipes" / name) as folder:
        if not folder.is_dir():
            raise UserError(f"{name}: no such folder of recipes; there are kuairand and world")
        for system in SYSTEMS:
            recipe = load(folder / f"{system.name}.toml")
            schema = _schema_of(recipe, name, data)
            if schema is None or not _has_files(recipe):
                dense = table = None
            else:
                dense, table = parameters(recipe, schema)
            yield SystemSize(system, f"jobs/recipes/{name}/{system.name}.toml", dense, table)


def parameters(recipe: Recipe, schema: DataSchema) -> tuple[int, int]:
    """Parameters of a recipe's dense part, and numbers in its tables, on a data set."""
    spec = spec_of(recipe, schema)
    model = build_model(recipe.model, fields_of(recipe, spec))
    dense = sum(math.prod(each.shape) for each in model.parameters())
    table = sum(each.rows * sum(s.dim for s in spec.sets_of(each)) for each in spec.tables)
    return dense, table


def _has_files(recipe: Recipe) -> bool:
    """Whether the files are there that tell the rows of the recipe's tables; those of numbers do not."""
    return all(
        "://" in each.path or Path(each.path).is_file()
        for name, each in named_files(recipe).items()
        if name in recipe.embedding.tables
    )


def _schema_of(recipe: Recipe, name: str, data: Path | None) -> DataSchema | None:
    if data is not None:
        return read_schema(data)
    if name == "world":
        return world_schema(WORLD_ROWS, WORLD_DAYS, WORLD_SEED)
    is_there = (Path(recipe.data.path) / "schema.json").is_file()
    return read_schema(recipe.data.path) if is_there else None
