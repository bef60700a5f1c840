"""The model registry: versions, aliases, promotion, and from a model's name to its files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from prismrec.config import UserError, nearest
from prismrec.config.redact import without_password, without_passwords
from prismrec.data.write import staged
from prismrec.serving.bundle import Manifest, is_bundle, read_manifest
from prismrec.serving.logged import pyfunc_arguments
from prismrec.tracking.promotion import Decision, Rival, decide_promotion
from prismrec.tracking.uri import quiet_mlflow, resolve_uri

CHAMPION = "champion"
PREVIOUS = "previous"
_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")
_RUN = re.compile(r"[0-9a-f]{32}")
_TAG = "prismrec."
_MAX_TOLD = 3
"""Versions that an error names, the newest."""


@dataclass(frozen=True, slots=True)
class ModelVersionInfo:
    """One version of a registered model.

    Args:
        name: registered name.
        version: number, from 1.
        aliases: sorted.
        run: id of the run that trained it.
        data: path of its training data, without credentials.
        metrics: test metrics by name, such as `click/auc`.
        tags: fingerprint of the data, recipe's name, table type.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    run: str
    data: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """`models:/name/version`."""
        return f"models:/{self.name}/{self.version}"

    @property
    def label(self) -> str:
        """How a sentence speaks of it."""
        return f"{self.name} version {self.version}"

    def row(self) -> dict[str, Any]:
        """What `prismrec models list --json` prints of it."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "run": self.run,
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The files of a model, found by any of its names.

    Args:
        path: local directory: an inference copy, or a checkpoint.
        version: where it stands in the registry, None for a directory.
    """

    path: Path
    version: ModelVersionInfo | None = None

    @property
    def is_bundle(self) -> bool:
        """Whether `path` is an inference copy; otherwise it is a checkpoint."""
        return is_bundle(self.path)


class Registry:
    """The models registered at one tracking server.

    Args:
        uri: the recipe's `tracking.uri`.
    """

    def __init__(self, uri: str) -> None:
        quiet_mlflow()
        self.uri = resolve_uri(uri)
        self._client = MlflowClient(self.uri, self.uri)

    def register(
        self,
        run_id: str,
        bundle: Path,
        name: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
    ) -> ModelVersionInfo:
        """Log an inference copy with its run and register it as the next version of a model.

        The first version of a name gets the alias `champion`. A copy that answers as one which the
        run has registered already is that version, as where a run is resumed that had ended.

        Args:
            run_id: the run that trained it.
            bundle: the inference copy.
            name: registered name.
            metrics: test metrics by name, which promotion compares.
            tags: `data` (the path of the training data; credentials are taken out) and whatever
                else tells versions apart, such as `data_fingerprint`.

        Raises:
            UserError: the directory is not an inference copy, or the server refuses.
        """
        manifest = read_manifest(bundle)
        facts = {
            **{key: without_password(value) for key, value in tags.items()},
            "recipe": str(manifest.recipe["name"]),
            "table_type": manifest.table_type,
            "metrics": json.dumps(dict(metrics)),
            "answers": _digest(manifest),
        }
        with _told(self.uri):
            known = self._registered(run_id, name, facts["answers"])
            if known is not None:
                return known
            logged = self._log(run_id, bundle)
            self._make_name(name)
            version = self._client.create_model_version(
                name,
                # Not `models:/id`, which an SQLite store looks up at a global server of MLflow's.
                logged.artifact_location,
                run_id,
                tags={_TAG + key: value for key, value in facts.items()},
                model_id=logged.model_id,
            )
            if int(version.version) == 1:
                self._client.set_registered_model_alias(name, CHAMPION, "1")
        return self._version(name, str(version.version))

    def _registered(self, run_id: str, name: str, digest: str) -> ModelVersionInfo | None:
        """The version of a model that a run has registered with the same answers."""
        for each in self._client.search_model_versions(f"run_id='{run_id}'"):
            if (each.name, each.tags.get(f"{_TAG}answers")) == (name, digest):
                return self._version(name, str(each.version))
        return None

    def _make_name(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _log(self, run_id: str, bundle: Path) -> LoggedModel:
        """Store an inference copy with its run, as a model of MLflow's.

        Done by the client, because `mlflow.pyfunc.log_model` stores by way of a global server and
        experiment, and loads the whole model once more to try its input example.
        """
        experiment = self._client.get_run(run_id).info.experiment_id
        logged = self._client.create_logged_model(experiment, "model", run_id)
        described = Model(
            artifact_path=logged.artifact_location,
            run_id=run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        arguments = pyfunc_arguments(bundle)
        metadata = arguments.pop("metadata")
        described.metadata = metadata
        try:
            with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=".model-") as draft:
                path = str(Path(draft) / "model")
                mlflow.pyfunc.save_model(path, mlflow_model=described, **arguments)
                self._client.log_model_artifacts(logged.model_id, path)
        except BaseException:
            self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise
        self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return logged

    def list_models(self) -> list[ModelVersionInfo]:
        """Every version of every model, names in order, latest versions first."""
        with _told(self.uri):
            models = _all_pages(self._client.search_registered_models)
            versions = _all_pages(self._client.search_model_versions)
        aliases = {model.name: model.aliases for model in models}
        infos = [_info(each, aliases.get(each.name, {})) for each in versions]
        return sorted(infos, key=lambda info: (info.name, -info.version))

    def show(self, model: str) -> ModelVersionInfo:
        """One version, by `models:/name@alias`, `models:/name/3`, `name@alias` or a run id.

        Raises:
            UserError: there is no such model, alias, version or run.
        """
        text = (
            model if model.startswith("models:/") or _RUN.fullmatch(model) else f"models:/{model}"
        )
        if _RUN.fullmatch(text):
            return self._of_run(text)
        match = _MODEL.fullmatch(text)
        if match is None:
            raise UserError(
                f"'{model}' is no model; give models:/NAME@ALIAS, models:/NAME/VERSION, a run id "
                "or the directory of a checkpoint or inference copy"
            )
        name, alias, version = match["name"], match["alias"], match["version"]
        return self._version(name, version or self._holder_or_error(name, alias))

    @contextmanager
    def resolve(self, model: str) -> Iterator[ResolvedModel]:
        """The files of a model: as `show`, or the directory of a checkpoint or inference copy.

        A copy at a remote server is downloaded to a temporary directory, which is gone when the
        context ends; what lies on a file system of this machine is read where it is, and stays.

        Raises:
            UserError: there is no such model.
        """
        if not model.startswith("models:/") and Path(model).is_dir():
            yield ResolvedModel(Path(model))
            return
        info = self.show(model)
        with ExitStack() as stack:
            with _told(self.uri):
                artifacts = self._artifacts(info, stack)
            found = [path for path in artifacts.iterdir() if is_bundle(path)]
            if len(found) != 1:
                raise UserError(f"{info.label} was not registered by prismrec; register it again")
            yield ResolvedModel(found[0], info)

    def _artifacts(self, info: ModelVersionInfo, stack: ExitStack) -> Path:
        """The folder that holds one entry, named as the bundle was when logged; `stack` removes it where
        it had to be downloaded.
        """
        stored = self._client.get_model_version_download_uri(info.name, str(info.version))
        scratch = None
        if urlsplit(stored).scheme not in ("", "file"):
            made = tempfile.TemporaryDirectory(prefix="prismrec-", ignore_cleanup_errors=True)
            scratch = stack.enter_context(made)
        return Path(
            mlflow.artifacts.download_artifacts(
                f"{stored}/artifacts", dst_path=scratch, tracking_uri=self.uri
            )
        )

    def promote(
        self,
        model: str,
        metric: str,
        min_gain: float = 0.0,
        *,
        to: str = CHAMPION,
        force: bool = False,
    ) -> Decision:
        """Give a version an alias if it is better than the version that has it.

        The version that had `champion` becomes `previous`.

        Args:
            model: as for `show`.
            metric: test metric to compare, such as `click/auc`.
            min_gain: smallest gain.
            to: the alias.
            force: promote whatever the numbers say.

        Returns:
            The decision that was carried out.

        Raises:
            UserError: the version is not better by `min_gain`, with both numbers, or has no such
                metric.
        """
        candidate = self.show(model)
        holder = self.holder(candidate.name, to)
        if holder is not None and holder.version == candidate.version:
            return Decision(True, f"{candidate.label} is '{to}' already")
        if force:
            decision = Decision(True, f"{candidate.label} is '{to}' by force")
        else:
            rival = None if holder is None else Rival(holder.label, holder.metrics)
            this = Rival(candidate.label, candidate.metrics)
            decision = decide_promotion(this, rival, metric, min_gain)
        if not decision.is_allowed:
            raise UserError(f"not promoted to '{to}': {decision.reason}")
        with _told(self.uri):
            if holder is not None and to == CHAMPION:
                self._client.set_registered_model_alias(
                    candidate.name, PREVIOUS, str(holder.version)
                )
            self._client.set_registered_model_alias(candidate.name, to, str(candidate.version))
        return decision

    def tested_on_other_data(self, model: str, to: str = CHAMPION) -> str | None:
        """A sentence where the metrics that `promote` compares are of different data, None otherwise.

        Args:
            model: as for `show`.
            to: the alias.

        Raises:
            UserError: there is no such model.
        """
        candidate = self.show(model)
        holder = self.holder(candidate.name, to)
        if holder is None:
            return None
        prints = {each.tags.get("data_fingerprint") for each in (candidate, holder)}
        if None in prints or len(prints) == 1:
            return None
        return (
            f"{candidate.label} and {holder.label} were tested on different data, so their metrics may "
            f"not compare; `prismrec evaluate {candidate.uri} --data DIR --against {holder.uri}` "
            "measures both on the same rows"
        )

    def holder(self, name: str, alias: str) -> ModelVersionInfo | None:
        """The version of a model that has an alias, None where nobody has.

        Raises:
            UserError: there is no such model.
        """
        number = self._holder(name, alias)
        return None if number is None else self._version(name, number)

    def export(self, model: str, out: Path) -> Path:
        """Copy a model's files to a new directory.

        Raises:
            UserError: there is no such model, or the directory exists.
        """
        if out.exists():
            raise UserError(f"{out}: already there; choose another directory")
        with staged(out) as stage, self.resolve(model) as found:
            shutil.copytree(found.path, stage, dirs_exist_ok=True)
        return out

    def _version(self, name: str, version: str) -> ModelVersionInfo:
        try:
            found = self._client.get_model_version(name, version)
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            raise self._unknown(name, error, version) from None
        return _info(found, aliases)

    def _holder(self, name: str, alias: str) -> str | None:
        """Number of the version that has an alias."""
        try:
            aliases = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            raise self._unknown(name, error) from None
        return str(aliases[alias]) if alias in aliases else None

    def _holder_or_error(self, name: str, alias: str) -> str:
        number = self._holder(name, alias)
        if number is None:
            known = self._client.get_registered_model(name).aliases
            raise UserError(f"models:/{name}@{alias}: no such alias; {nearest(alias, known)}")
        return number

    def _of_run(self, run_id: str) -> ModelVersionInfo:
        with _told(self.uri):
            versions = self._client.search_model_versions(f"run_id='{run_id}'")
        if not versions:
            raise UserError(
                f"run {run_id} has registered no model at {without_password(self.uri)}; give "
                "another run, or the directory of its checkpoint"
            )
        latest = max(versions, key=lambda each: int(each.version))
        return self._version(latest.name, str(latest.version))

    def _unknown(self, name: str, error: MlflowException, version: str | None = None) -> UserError:
        """What to say of a name, or of one of its versions, that the server does not know."""
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            return _trouble(self.uri, error)
        models = self.list_models()
        numbers = [str(info.version) for info in models if info.name == name]  # newest first
        if version is not None and numbers:
            more = ", ..." if len(numbers) > _MAX_TOLD else ""
            known = ", ".join(numbers[:_MAX_TOLD]) + more
            return UserError(f"{name} has no version {version}; it has {known}")
        uri = f"models:/{name}" if version is None else f"models:/{name}/{version}"
        hint = nearest(name, [info.name for info in models])
        return UserError(f"{uri}: no such model at {without_password(self.uri)}; {hint}")


def _digest(manifest: Manifest) -> str:
    """The same for copies that answer alike: all files but the manifest, and what it adds to the logits."""
    parts = manifest.model_dump_json(
        include={"sha256", "table_type", "dense_type", "logit_offsets", "calibration"}
    )
    return hashlib.sha256(parts.encode()).hexdigest()


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into a sentence."""
    try:
        yield
    except MlflowException as error:
        raise _trouble(uri, error) from None


def _trouble(uri: str, error: MlflowException) -> UserError:
    return UserError(
        f"tracking.uri: {without_password(uri)} answered: {without_passwords(error)}; see its log"
    )


def _all_pages(search: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(max_results=1000, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


def _info(version: ModelVersion, aliases: Mapping[str, str]) -> ModelVersionInfo:
    tags = {
        key.removeprefix(_TAG): value for key, value in version.tags.items() if key.startswith(_TAG)
    }
    return ModelVersionInfo(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if str(v) == str(version.version))),
        run=version.run_id or "",
        data=tags.pop("data", ""),
        metrics=json.loads(tags.pop("metrics", "{}")),
        tags=tags,
    )
