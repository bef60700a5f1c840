"""A run as a job of a cluster: what is shipped, and what runs there.

Shipped are prismrec as a wheel and one file with the recipe; nothing of the working directory is,
and no password: a recipe that holds one is refused, because whoever may look at the cluster's jobs
would see it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.cluster.runtime import SETTINGS
from prismrec.cluster.stack import check_stack, stack_versions
from prismrec.config import Recipe, UserError, dump, flatten, from_dict
from prismrec.config.redact import has_credentials
from prismrec.data.encode.copies import with_absolute_paths
from prismrec.jobs.remote import Jobs
from prismrec.jobs.wheel import pack_wheel
from prismrec.train.initial import with_absolute_sources

FILE = "job.json"
"""What is shipped beside the wheel."""
STOP_S = 1800
"""Seconds that a job asked to stop has to save a checkpoint and leave."""
_ENTRY = f"python -m prismrec.cli run-job {FILE}"


@dataclass(frozen=True, slots=True)
class Job:
    """What a node is told to run.

    Args:
        recipe: the recipe, `workers.address` set to the cluster that the job is in.
        resume: go on with the recipe's newest run.
        directory: where the recipe's relative paths start, on the cluster's shared storage; the
            file system's root where it has none.
        versions: the stack of the machine that submitted, by name.
    """

    recipe: Recipe
    resume: bool
    directory: str
    versions: dict[str, str]

    def enter(self) -> None:
        """Have this process stand where the relative paths start.

        Raises:
            UserError: this node's stack differs, or the directory is not there.
        """
        check_stack(self.versions, stack_versions(), _here(), "the machine that submitted")
        try:
            os.chdir(self.directory)
        except OSError as error:
            raise UserError(
                f"--dir: {self.directory} cannot be entered on node {_here()} ({error.strerror}); "
                "name a directory that all nodes see"
            ) from None


def submit(recipe: Recipe, jobs: Jobs, directory: str | None, *, resume: bool = False) -> str:
    """Hand a run to a cluster.

    Args:
        recipe: what to train; `workers.address` is not looked at.
        jobs: the cluster.
        directory: where its relative paths start, on storage that all nodes see.
        resume: go on with the recipe's newest run there.

    Returns:
        The job's id.

    Raises:
        UserError: the recipe holds a password, or a relative path that `directory` is needed for.
    """
    check_secrets(recipe)
    check_paths(recipe, directory)
    workers = recipe.workers.model_copy(update={"address": "auto"})
    document = {
        "recipe": dump(recipe.model_copy(update={"workers": workers})),
        "resume": resume,
        "directory": directory or "/",
        "versions": stack_versions(),
    }
    with tempfile.TemporaryDirectory(prefix="prismrec-job-") as folder:
        shipped = Path(folder) / "job"
        shipped.mkdir()
        (shipped / FILE).write_text(json.dumps(document, indent=1) + "\n")
        environment = {
            "working_dir": str(shipped),
            "py_modules": [str(pack_wheel(Path(folder)))],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **SETTINGS},
        }
        name = re.sub(r"[^\w-]", "-", recipe.name)
        return jobs.start(f"{name}-{secrets.token_hex(4)}", _ENTRY, environment, recipe.name)


def read_job(path: Path) -> Job:
    """What was shipped, on the node that runs it.

    Raises:
        UserError: the file is no job's.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return Job(
            recipe=from_dict(document["recipe"], source=str(path)),
            resume=bool(document["resume"]),
            directory=str(document["directory"]),
            versions=dict(document["versions"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not what `prismrec submit` ships ({error})") from None


def check_secrets(recipe: Recipe) -> None:
    """Refuse a recipe that would put a password where the cluster's users see it.

    Raises:
        UserError: the key that holds one.
    """
    for key, value in flatten(recipe).items():
        if has_credentials(str(value)):
            raise UserError(
                f"{key}: holds a password or a key, which everybody who may look at the cluster's "
                "jobs would see; take it out, and set it in the environment of the nodes "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow)"
            )


def check_command_line(overrides: Sequence[str]) -> None:
    """Refuse overrides with a password where the command would be shown as part of a job.

    Raises:
        UserError: the key that holds one.
    """
    for each in overrides:
        key, _, value = each.partition("=")
        if has_credentials(value):
            raise UserError(
                f"{key}: holds a password or a key on the command line, which the cluster shows with "
                "its jobs and this machine with its processes; write it into a recipe file that only you "
                "can read, or set it in the environment of the nodes"
            )


def check_paths(recipe: Recipe, directory: str | None) -> None:
    """Refuse relative paths where nothing says what they are relative to.

    Raises:
        UserError: the keys with such paths, or a directory that is relative itself.
    """
    if directory is not None:
        if not Path(directory).is_absolute():
            raise UserError(f"--dir: '{directory}' is not absolute; give it as the nodes see it")
        return
    written, absolute = flatten(recipe), flatten(with_absolute_sources(with_absolute_paths(recipe)))
    relative = [key for key in written if written[key] != absolute[key]]
    uri = recipe.tracking.uri.removeprefix("sqlite:///")
    paths = {"out": recipe.out, "data.path": recipe.data.path}
    paths |= {"tracking.uri": uri} if uri != recipe.tracking.uri else {}
    relative += [k for k, path in paths.items() if "://" not in path and not path.startswith("/")]
    if relative:
        raise UserError(
            f"{', '.join(relative)}: relative paths mean nothing on another machine; make them "
            "absolute, or give --dir, the directory on the cluster's storage where they start"
        )


def _here() -> str:
    """What this node is called."""
    import socket

    return socket.gethostname()
