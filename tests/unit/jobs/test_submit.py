"""What `prismrec submit` ships and what it refuses, without a cluster."""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import json
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from prismrec.config import Recipe, UserError, dump, from_dict
from prismrec.jobs import submit
from prismrec.jobs.remote import Jobs
from prismrec.jobs.wheel import MOUNTED, pack_wheel
from tests.helpers.source_tree import ROOT, packages_on_disk

TREE = {
    "name": "small",
    "out": "/shared/runs",
    "tasks": [{"name": "click", "label": "is_click"}],
    "data": {"path": "/shared/rows"},
    "features": {"sparse": ["user"]},
    "model": {"name": "dcnv2"},
    "tracking": {"uri": "http://10.0.0.1:5000"},
}


def recipe(*overrides: str) -> Recipe:
    return from_dict(TREE, overrides)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_requires_nothing_and_holds_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = [name for name in names if name.endswith("/METADATA")]
        metadata = Parser().parsestr(archive.read(info).decode())
    assert metadata.get_all("Requires-Dist") is None
    assert metadata["Name"] == "prismrec"
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages_on_disk().items()
        for path in folder.glob("*.py")
    }
    assert expected <= set(names)
    kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert kinds == {".py", ".typed", ".html", ".css", ".js"}, "no recipe, no file of the user's"
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    mounts = [line.split(" = ")[0] for line in parser["options"]["package_dir"].split("\n") if line]
    assert sorted(mounts) == sorted(["prismrec", *(f"prismrec.{name}" for name in MOUNTED)])


def test_the_record_of_the_wheel_is_right(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith("/RECORD")]
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert sorted(row[0] for row in rows) == sorted(archive.namelist())
        for name, digest, size in rows:
            data = archive.read(name)
            if name != record:
                plain = (
                    base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                )
                assert (digest, int(size)) == (f"sha256={plain}", len(data))


def test_equal_files_make_an_equal_wheel_and_others_another_name(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = pack_wheel(tmp_path)
    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())
    import prismrec
    from prismrec.jobs import wheel as module

    copy = tmp_path / "copy"
    (copy / "prismrec").mkdir(parents=True)
    (copy / "prismrec/__init__.py").write_text("# other code\n")
    monkeypatch.setattr(prismrec, "__path__", [str(copy / "prismrec")])
    monkeypatch.setattr(module, "MOUNTED", ())
    assert pack_wheel(tmp_path).name != wheel.name


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("tracking.uri=http://me:pl4nted@10.0.0.1:5000", "tracking.uri"),
        ("tracking.uri=postgresql://me:pl4nted@10.0.0.1/runs", "tracking.uri"),
        ("data.path=s3://key:pl4nted@bucket/rows", "data.path"),
        ("data.path=s3://bucket/rows?secret_key=pl4nted", "data.path"),
    ],
)
def test_a_recipe_with_a_password_is_refused_without_telling_it(change: str, key: str) -> None:
    with pytest.raises(
        UserError, match=rf"{key}: holds a password or a key, .* environment of the"
    ) as e:
        submit.check_secrets(recipe(change))
    assert "pl4nted" not in e.value.message


def test_a_recipe_without_one_is_not() -> None:
    submit.check_secrets(recipe("tracking.uri=http://me@10.0.0.1:5000"))
    submit.check_secrets(recipe("data.path=s3://bucket/rows?region=eu-west-1"))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ("out=runs", "out"),
        ("data.path=rows", "data.path"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri"),
    ],
)
def test_relative_paths_need_a_directory(change: str, keys: str) -> None:
    with pytest.raises(
        UserError, match=rf"^{keys}: relative paths mean nothing on another machine"
    ):
        submit.check_paths(recipe(change), None)
    submit.check_paths(recipe(change), "/shared/me")
    with pytest.raises(
        UserError, match=r"--dir: 'me' is not absolute; give it as the nodes see it"
    ):
        submit.check_paths(recipe(change), "me")


def test_absolute_paths_and_urls_need_none() -> None:
    submit.check_paths(recipe("data.path=s3://bucket/rows"), None)
    submit.check_paths(recipe("tracking.uri=sqlite:////shared/mlflow.db"), None)


def test_what_is_shipped_is_read_back_and_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismrec.cluster.stack import stack_versions

    monkeypatch.chdir(tmp_path)
    path = tmp_path / submit.FILE
    shipped = {"recipe": dump(recipe()), "resume": True, "directory": str(tmp_path)}
    path.write_text(json.dumps({**shipped, "versions": stack_versions()}))
    job = submit.read_job(path)
    assert (job.recipe, job.resume) == (recipe(), True)
    job.enter()
    path.write_text(json.dumps({**shipped, "versions": stack_versions() | {"torch": "2.11.0"}}))
    with pytest.raises(
        UserError, match=r"node .*: torch differ from the machine that submitted: it"
    ):
        submit.read_job(path).enter()
    path.write_text(json.dumps({**shipped, "versions": stack_versions(), "directory": "/no/where"}))
    with pytest.raises(UserError, match=r"--dir: /no/where cannot be entered on node "):
        submit.read_job(path).enter()
    path.write_text("{}")
    with pytest.raises(UserError, match=r"job\.json: not what `prismrec submit` ships"):
        submit.read_job(path)


def test_addresses_of_jobs_are_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMREC_STATE_DIR", str(tmp_path / "state"))
    with pytest.raises(UserError, match=r"--address: '10\.0\.0\.1:6379' is no URL; jobs go to the"):
        Jobs("10.0.0.1:6379")
    with pytest.raises(UserError, match=r"this machine has no head of a cluster; give the URL"):
        Jobs()
