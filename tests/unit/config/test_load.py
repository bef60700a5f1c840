"""Reading recipes: precedence, and every problem told at once in words."""

from __future__ import annotations

import pickle
import re

import pytest

from prismrec import config
from prismrec.config.models import Custom
from prismrec.config.models.single import DCNv2

MINIMAL = """
name = "tiny"
[data]
path = "somewhere"
[features]
sparse = ["user", { name = "history", table = "item", pooling = "mean" }, "item"]
[model]
name = "dcnv2"
[[tasks]]
name = "click"
label = "is_click"
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_defaults_then_file_then_command_line(recipe_file):
    path = recipe_file(MINIMAL + "[train]\nepochs = 2\n")
    recipe = config.load(path, ["train.steps=7", "data.order=file", "embedding.num_sets=4"])
    assert (recipe.train.epochs, recipe.train.steps, recipe.data.order) == (2, 7, "file")
    assert [s.dim for s in recipe.embedding.resolved_sets] == [16] * 4
    assert isinstance(recipe.model, DCNv2)
    assert recipe.features.sparse[1].table_name == "item"
    assert recipe.best_metric() == "click/auc"


def test_every_problem_at_once(recipe_file):
    path = recipe_file(
        MINIMAL.replace('"dcnv2"', '"dcnv3"').replace('"mean"', '"max"')
        + "trian = 1\n[embedding]\ndim = 6\n[train]\nsteps = true\nbatchsize = 3\n"
    )
    with pytest.raises(config.ConfigError) as caught:
        config.load(path, ["oops", "train.epochs=0", "data.lanes='8'"])
    lines = caught.value.problems
    assert lines[0] == "override 'oops' is not of the form section.key=value"
    expected = [
        "data.lanes: must be a whole number, got '8' (str)",
        "embedding.dim: a width must be a multiple of 4 between 4 and 1024, got 6; "
        "the nearest are 4 and 8",
        "features.sparse[1].pooling: must be one of 'sum' or 'mean', got 'max'",
        "model: unknown model 'dcnv3'; did you mean 'dcnv2'?",
        "tasks[0].trian: unknown key; known: 'label', 'loss', 'name'",
        "train.batchsize: unknown key; known: ",
        "train.epochs: must be >= 1, got 0",
        "train.steps: must be a whole number, got True (bool)",
    ]
    assert len(lines) == 1 + len(expected)
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(start)
    assert str(path) in str(caught.value)


def test_a_misspelt_field_of_the_model_is_named(recipe_file):
    with pytest.raises(config.ConfigError, match=r"model\.num_croslayers: unknown key; did you"):
        config.load(recipe_file(MINIMAL), ["model.num_croslayers=2"])


def test_a_model_that_is_no_section_is_told():
    with pytest.raises(config.ConfigError, match=r"- model: needs a name; known: 'aitm'"):
        config.from_dict({"name": "tiny", "model": 3})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workers.count=3"], "9 lanes and data.global_batch_size = 4104 work"),
        (["data.global_batch_size=100"], "100 is not a multiple of 8 lanes; 104 is the next"),
        (["data.lanes=64"], "may hold only 16 row groups"),
        (["embedding.tables.usr.rows=5"], "no feature uses this table; did you mean 'user'?"),
        (["embedding.tables.user.ids=hash"], "embedding.tables.user.rows: missing; a table with"),
        (
            ["embedding.tables.user.ids.kind=managed"],
            "embedding.tables.user.rows: missing; a table with ids = 'managed' has as many rows",
        ),
        (
            ["embedding.tables.user={ids={kind='vocabulary', path='x'}, rows=3}"],
            "embedding.tables.user.rows: a table with a vocabulary has a row for each of its ids",
        ),
        (
            ["embedding.tables.user={ids='hash', rows=3, unknown_rows=2}"],
            "embedding.tables.user.unknown_rows: a hash finds a row for every id but a missing one",
        ),
        (
            ["embedding.tables.user={ids={kind='direct', out_of_range='fail'}, unknown_rows=2}"],
            "embedding.tables.user.unknown_rows: with out_of_range = 'fail' only a missing id",
        ),
        (
            ["embedding.tables.user.ids=hsah"],
            "embedding.tables.user.ids.kind: unknown kind 'hsah'; did you mean 'hash'?",
        ),
        (
            ["embedding.tables.user.ids={seed=3}"],
            "embedding.tables.user.ids.kind: missing (required); known: 'direct', 'hash', 'managed'",
        ),
        (
            ["embedding.tables.user={ids={kind='hash', seed=-1}, rows=3}"],
            "embedding.tables.user.ids.seed: must be >= 0, got -1",
        ),
        (
            ["embedding.tables.user={ids={kind='hash', heshes=2}, rows=3}"],
            "embedding.tables.user.ids.heshes: unknown key; did you mean 'hashes'?",
        ),
        (["embedding.tables.user.ids=3"], "embedding.tables.user.ids: must be a section, got 3"),
        (["embedding.dim=2000"], "between 4 and 1024, got 2000; the nearest are 1024 and 1024"),
        (["data.order=time"], "features.time: data.order = 'time' needs"),
        (["evaluate.metric=click/acu"], "unknown metric 'click/acu'; did you mean 'click/auc'?"),
        (["tasks.0.weight=2"], "'tasks' is not a section; change it in the recipe file"),
        (
            ["embedding.optimizer.name=rowwise_adagrad", "embedding.num_sets=2"],
            "couples packed sets",
        ),
        (["model.name=my_team.models:build", "model.hiden=3"], "model.hiden: unknown key"),
        (
            ["export.table_type=int4", "export.max_auc_change=0.1"],
            "export: int4 tables cost accuracy that only you can judge; set export.max_auc_change",
        ),
        (
            ["train.device=cpu", "embedding.optimizer.name=adam"],
            "embedding.optimizer.name: 'adam' is not supported in CPU mode; on CPU there are sgd, "
            "adagrad, rowwise_adagrad",
        ),
        (
            [
                "train.device=cpu",
                "embedding.optimizer={name='rowwise_adagrad', weight_decay=0.1}",
            ],
            "embedding.optimizer.weight_decay: the CPU kernels ignore weight decay; set it to 0",
        ),
        (
            ["train.device=cpu", "embedding.tables.item.optimizer.name=lamb"],
            "embedding.tables.item.optimizer.name: 'lamb' is not supported in CPU mode",
        ),
        (
            [
                "train.device=cpu",
                "embedding.sets=[{name='a', dim=8}, "
                "{name='b', dim=8, optimizer={name='rowwise_adagrad', max_norm=1.0}}]",
            ],
            "embedding.sets[1].optimizer.max_norm: the CPU kernels ignore the largest length",
        ),
        (
            ["embedding.optimizer={name='sgd', weight_decay=0.1}"],
            "embedding.optimizer: the kernels of sgd ignore weight_decay; leave it out, or use "
            "rowwise_adagrad or adam",
        ),
        (
            ["embedding.optimizer.max_norm=1.0"],
            "embedding.optimizer: the kernels of adagrad ignore max_norm; leave it out, or use "
            "rowwise_adagrad",
        ),
        (
            ["embedding.tables.user.optimizer={name='sgd', eps=0.1}"],
            "the kernels of sgd ignore eps",
        ),
        (
            ["train.device=cpu", "embedding.tables.item.kernel=fused_uvm"],
            "embedding.tables.item.kernel: 'fused_uvm' is for tables that a CUDA device looks up",
        ),
        (
            ["workers.count=4", "embedding.ranks_per_copy=3"],
            "embedding.ranks_per_copy: 4 workers cannot hold several copies of the tables with 3 "
            "ranks each; use 1 or 2 or leave it out",
        ),
        (["embedding.ranks_per_copy=1"], "1 workers cannot hold several copies"),
        (
            ["workers.count=4", "workers.min_count=1"],
            "data.lanes: 8 lanes cannot be shared out to any of 1 to 4 (workers.min_count to "
            "workers.count) workers; 12 lanes and data.global_batch_size = 4104 work",
        ),
        (
            ["workers.count=4", "workers.min_count=1", "data.lanes=24"],
            "data.global_batch_size: 4096 is not a multiple of 24 lanes; 4104 is the next that works",
        ),
        (
            ["workers.count=2", "workers.min_count=1", "data.open_lanes=4"],
            "data.open_lanes: a rank owns 8 lanes and may hold only 4 row groups",
        ),
        (
            ["workers.count=2", "workers.min_count=1", "embedding.ranks_per_copy=1"],
            "embedding.ranks_per_copy: copies of the tables need a fixed number of workers",
        ),
        (["workers.min_count=2"], "workers: min_count: at most count = 1 can be asked for, got 2"),
        (
            ["train.device=cpu", "embedding.cache_load_factor=0.5"],
            "embedding.cache_load_factor: only a CUDA device caches rows of tables; on CPU leave it",
        ),
        (
            ["embedding.kernel=fused", "embedding.cache_load_factor=0.5"],
            "embedding.cache_load_factor: no table can have a cache: those with kernel =",
        ),
        (
            [
                "embedding.cache_load_factor=0.5",
                "embedding.tables.user.kernel=fused_uvm",
                "embedding.tables.item.sharding=data_parallel",
            ],
            "embedding.cache_load_factor: no table can have a cache: those with kernel =",
        ),
        (
            ["model={name='lr'}", "embedding.sets=[{name='a', dim=8}]"],
            "embedding.sets: model.name = 'lr' reads no embedding set; leave it out or choose another",
        ),
        (
            ["model={name='lr'}", "embedding.num_sets=2"],
            "embedding.num_sets: model.name = 'lr' reads",
        ),
        (["model={name='lr'}", "embedding.dim=8"], "embedding.dim: model.name = 'lr' reads no"),
        (["embedding.sync_every=4"], "embedding.sync_every: there is one copy of the tables"),
        (
            [
                "workers.count=4",
                "data.global_batch_size=16",
                "embedding.communication.forward=int8",
            ],
            "embedding.communication: int8 needs a multiple of 8 rows in the batch of a rank, which "
            "has 4",
        ),
        (
            ["train.accumulation_steps=4"],
            "train.accumulation_steps: gradients of 4 batches cannot be added up: backward updates "
            "the tables at once",
        ),
        (["tasks=[{name='a/b', label='y'}]"], "tasks[0].name: "),
        (["tasks=[{name='..', label='y'}]"], "tasks[0].name: "),
        (["tasks=[{name='like it', label='y'}]"], "tasks[0].name: "),
        (
            ["features.sparse=['user.id']"],
            "features.sparse[0].table: not set, so the table has the name of the column, 'user.id', "
            "but cannot hold '.', '/' or '__'; set `table`",
        ),
        (
            ["features.sparse=['user', {name='item', table='a__b'}]"],
            "features.sparse[1].table: the name of a table is not empty and cannot hold",
        ),
        (["embedding.sets=[{name='a/b', dim=8}]"], "embedding.sets[0].name: the name of a set"),
        (["embedding.sets=[{name='_b', dim=8}]"], "does not begin with '_' and cannot hold"),
    ],
)
def test_checks_across_sections(recipe_file, overrides, message):
    with pytest.raises(config.ConfigError, match=re.escape(message)):
        config.load(recipe_file(MINIMAL), overrides)


def test_what_only_sounds_wrong_is_allowed(recipe_file):
    """The optimizer on another device, int4 with both bounds, and a table for a column's name."""
    overrides = [
        "embedding.optimizer.name=adam",
        "export={table_type='int4', max_auc_change=0.1, max_logloss_change=0.2}",
        "features.sparse=[{name='user.id', table='user'}, 'item']",
        "tasks=[{name='is-click_2.0', label='y'}]",
    ]
    recipe = config.load(recipe_file(MINIMAL), overrides)
    assert recipe.export.bounds == (0.1, 0.2)
    assert recipe.best_metric() == "is-click_2.0/auc"
    assert [feature.table_name for feature in recipe.features.sparse] == ["user", "item"]


def test_one_table_that_may_have_a_cache_is_enough(recipe_file):
    one = [
        "embedding.cache_load_factor=0.5",
        "embedding.kernel=fused",
        "embedding.tables.user.kernel=fused_uvm_caching",
    ]
    assert config.load(recipe_file(MINIMAL), one).embedding.cache_load_factor == 0.5
    assert config.load(recipe_file(MINIMAL), one[:1]).embedding.cache_load_factor == 0.5


def test_a_resolved_recipe_without_sets_reads_back_the_same(recipe_file):
    recipe = config.load(recipe_file(MINIMAL), ["model={name='lr'}"])
    assert config.from_dict(config.dump(recipe)) == recipe


def test_a_table_with_an_optimizer_of_its_own_hides_that_of_all(recipe_file):
    own = [f"embedding.tables.{name}.optimizer.name=sgd" for name in ("user", "item")]
    everyone = ["train.device=cpu", "embedding.optimizer.name=adam"]
    assert config.load(recipe_file(MINIMAL), [*everyone, *own]).train.device == "cpu"
    with pytest.raises(config.ConfigError, match=r"embedding\.optimizer\.name: 'adam'"):
        config.load(recipe_file(MINIMAL), [*everyone, own[0]])


def test_sets_one_by_one(recipe_file):
    text = MINIMAL + '[embedding]\nsets = [{name="wide", dim=32}, {name="narrow", dim=8}]\n'
    recipe = config.load(recipe_file(text))
    assert [(s.name, s.dim) for s in recipe.embedding.resolved_sets] == [
        ("wide", 32),
        ("narrow", 8),
    ]
    with pytest.raises(config.ConfigError, match="give either `sets` or `dim`"):
        config.load(recipe_file(text), ["embedding.dim=8"])


def test_a_resolved_recipe_reads_back_the_same(recipe_file):
    for text in (MINIMAL, MINIMAL + '[embedding]\nsets = [{name="a", dim=32}]\n'):
        recipe = config.load(recipe_file(text))
        assert config.from_dict(config.dump(recipe)) == recipe


def test_a_model_of_ones_own(recipe_file):
    text = MINIMAL.replace('name = "dcnv2"', 'name = "my_team.models:build"\noptions = {depth = 3}')
    model = config.load(recipe_file(text)).model
    assert isinstance(model, Custom)
    assert model.options == {"depth": 3}


def test_files_that_are_not_recipes(tmp_path):
    with pytest.raises(config.UserError, match="no such recipe file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(config.UserError, match="not a TOML file"):
        config.load(tmp_path)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(config.UserError, match="not valid TOML"):
        config.load(tmp_path / "bad.toml")


def test_errors_cross_processes():
    error = config.ConfigError("r.toml", ["a: b", "c: d"])
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    assert str(again) == str(error)


def test_flatten_gives_one_value_per_key(recipe_file):
    flat = config.flatten(config.load(recipe_file(MINIMAL)))
    assert flat["model.num_cross_layers"] == 3
    assert flat["features.sparse.1.table"] == "item"
    assert flat["tasks.0.name"] == "click"
