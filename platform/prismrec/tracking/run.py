"""One MLflow run: parameters, metrics, files, and the machine it ran on."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from prismrec.config import UserError
from prismrec.config.redact import redacted, without_password, without_passwords
from prismrec.config.train import TrackingSection
from prismrec.tracking.delivery import Delivery, RejectedError, Send
from prismrec.tracking.system import SystemSampler
from prismrec.tracking.uri import artifact_location, quiet_mlflow, resolve_uri, sqlite_path

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PACKAGES = ("prismrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "ray", "pyarrow",
             "mlflow", "numpy")  # fmt: skip
_FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE",
          "PERMISSION_DENIED", "RESOURCE_ALREADY_EXISTS")  # fmt: skip
_LONGEST_VALUE = 6000
"""Characters that MLflow keeps of a parameter's value."""
_PER_REQUEST = 100
"""Parameters that MLflow takes in one request."""
_METRICS_PER_REQUEST = 1000
"""Metrics that MLflow takes in one request."""


class MlflowTracker:
    """Records a run; no call waits for the server, except `start` and `close`.

    Records reach the server in the order of the calls. While it is away they are kept in memory
    and tried again; training goes on.

    Args:
        uri: tracking URI, absolute.
        run_id: an existing run.
        owns_status: whether this process ends the run; others only add to it.
    """

    def __init__(self, uri: str, run_id: str, *, owns_status: bool) -> None:
        self.uri = uri
        self.run_id = run_id
        self._owns_status = owns_status
        self._client = MlflowClient(uri)
        self.kept: Path | None = None
        """File that keeps metrics which the server did not take until `close`; `send_kept` sends them."""
        self._delivery = Delivery(name="mlflow-delivery")
        self._sampler: SystemSampler | None = None

    @classmethod
    def start(
        cls, section: TrackingSection, run_name: str, tags: Mapping[str, str] | None = None
    ) -> MlflowTracker:
        """A new run, with git commit and package versions recorded.

        Raises:
            UserError: the server does not answer, or the experiment was deleted.
        """
        quiet_mlflow()
        uri = resolve_uri(section.uri)
        client = MlflowClient(uri)
        try:
            experiment = _experiment(client, section.experiment, artifact_location(uri))
            run = client.create_run(experiment, run_name=run_name, tags=dict(tags or {}))
        except MlflowException as error:
            raise UserError(
                f"tracking.uri: no run could be started at {without_password(uri)} "
                f"({without_passwords(error)}); start the server or correct the URI"
            ) from None
        tracker = cls(uri, run.info.run_id, owns_status=True)
        tracker._log_environment()
        return tracker

    @classmethod
    def resume(cls, section: TrackingSection, run_id: str) -> MlflowTracker:
        """A run that ended too early, running again.

        Raises:
            UserError: the server does not answer, or has no such run.
        """
        quiet_mlflow()
        uri = resolve_uri(section.uri)
        try:
            MlflowClient(uri).update_run(run_id, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"tracking.uri: run {run_id} cannot go on at {without_password(uri)} "
                f"({without_passwords(error)}); give the URI that the run was started with"
            ) from None
        return cls(uri, run_id, owns_status=True)

    @classmethod
    def attach(cls, uri: str, run_id: str) -> MlflowTracker:
        """A run that another process has started; `uri` is that tracker's `uri`.

        Raises:
            UserError: the URI is an SQLite file that this machine does not have.
        """
        quiet_mlflow()
        path = sqlite_path(uri)
        if path is not None and not path.exists():
            raise UserError(
                f"tracking.uri: {uri} is not on the machine of this worker; with workers on other "
                "machines start an MLflow server and give its address"
            )
        return cls(uri, run_id, owns_status=False)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Facts that hold for the whole run, credentials taken out of URLs.

        A value already recorded differently is kept.
        """
        entries = [
            Param(name, ("" if value is None else str(redacted(value)))[:_LONGEST_VALUE])
            for name, value in parameters.items()
        ]
        for start in range(0, len(entries), _PER_REQUEST):
            part = entries[start : start + _PER_REQUEST]
            self._put(partial(self._client.log_batch, self.run_id, params=part))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers as of a step, dated now, whenever they arrive.

        MLflow knows no `=` in a name: `click/auc/domain=3` is recorded as `click/auc/domain:3`.
        """
        now_ms = int(time.time() * 1000)
        entries = [
            Metric(name.replace("=", ":"), float(v), now_ms, step) for name, v in metrics.items()
        ]
        for start in range(0, len(entries), _METRICS_PER_REQUEST):
            self._put_metrics(entries[start : start + _METRICS_PER_REQUEST])

    def send_kept(self, path: Path) -> int:
        """Record metrics that an earlier tracker of this run had to keep, as of then; their number.

        Until they are delivered they lie under another name beside `path`, where the next call finds
        them if this process is killed; MLflow takes one that it has already for the same. What cannot
        be read, such as a line that was not written to its end, is left out with a warning.
        """
        sending = path.with_suffix(".sending.jsonl")
        _append(path, sending)
        if not sending.exists():
            return 0
        lines = sending.read_text(errors="replace").split("\n")
        records = [_read_metrics(line) for line in lines if line]
        found = [each for each in records if each is not None]
        if len(found) < len(records):
            _log.warning("%s: %d lines are damaged", path, len(records) - len(found))
        for metrics in found:
            self._put_metrics(metrics)
        self._delivery.put(_Forget(sending))
        return len(found)

    def _put_metrics(self, metrics: list[Metric]) -> None:
        send = partial(self._client.log_batch, self.run_id, metrics=metrics)
        self._delivery.put(_Metrics(send, metrics))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Words to find the run by; a later value replaces an earlier one."""
        entries = [RunTag(name, value) for name, value in tags.items()]
        self._put(lambda: self._client.log_batch(self.run_id, tags=entries))

    def log_file(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run, under a folder of it; it must stay until `close`."""
        self._put(
            lambda: self._client.log_artifact(self.run_id, str(path), folder or None),
        )

    def log_text(self, text: str, name: str) -> None:
        """A text to keep with the run as the file `name`, such as `plan.txt`."""
        self._put(lambda: self._client.log_text(self.run_id, text, name))

    def sample_system(self, interval_s: float = 10.0) -> None:
        """Record the machine's load every `interval_s` seconds until `close`."""
        self._sampler = SystemSampler(self.log_metrics, interval_s)

    def close(self, status: Status = "FINISHED", timeout_s: float = 120.0) -> bool:
        """Deliver what is left and, in the process that started the run, end it.

        Args:
            status: how the run ended.
            timeout_s: seconds to wait for the server.

        Returns:
            Whether everything was delivered in time; of what was not, metrics are put into `kept`,
            and the rest is lost, with a warning.
        """
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        if self._owns_status:
            self._put(lambda: self._client.set_terminated(self.run_id, status))
        if self._delivery.close(timeout_s):
            records = self._delivery.left()
            kept = self._keep(records)
            left = sum(not isinstance(each, _Forget) for each in records)
            where = f" (metrics are kept in {self.kept}, --resume sends them)" if kept else ""
            _log.warning(
                "%d records of run %s are lost but for %d: %s did not take them within %g s%s",
                left, self.run_id, kept, without_password(self.uri), timeout_s, where,
            )  # fmt: skip
            return not left
        return True

    def _keep(self, records: list[Send]) -> int:
        """Put the metrics among the records into the file for them; the number of these records."""
        metrics = [each.metrics for each in records if isinstance(each, _Metrics)]
        if self.kept is None:
            return 0
        rows = [[[m.key, m.value, m.timestamp, m.step] for m in each] for each in metrics]
        try:
            with self.kept.open("a") as file:
                if file.tell():
                    file.write("\n")  # ends a line that was torn
                file.writelines(json.dumps(each) + "\n" for each in rows)
        except OSError as error:
            _log.warning("%s: metrics cannot be kept: %s", self.kept, error.strerror)
            return 0
        for each in records:
            if isinstance(each, _Forget):
                each()
        return len(metrics)

    def flush(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything recorded so far is delivered; whether it was in time."""
        return self._delivery.flush(timeout_s)

    def _put(self, send: Callable[[], Any]) -> None:
        self._delivery.put(partial(_deliver, send))

    def _log_environment(self) -> None:
        facts = environment()
        self.log_text(json.dumps(facts, indent=1) + "\n", "environment.json")
        tags = {"mlflow.source.name": "prismrec", "prismrec.version": facts["packages"]["prismrec"]}
        if facts["git_commit"]:
            tags["mlflow.source.git.commit"] = facts["git_commit"]
        self.log_tags(tags)


@dataclass(frozen=True, slots=True)
class _Metrics:
    """Metrics on their way, which can be kept where they do not arrive."""

    send: Callable[[], Any]
    metrics: list[Metric]

    def __call__(self) -> None:
        _deliver(self.send)


@dataclass(frozen=True, slots=True)
class _Forget:
    """Removes a file of kept metrics, once the records before it have arrived."""

    path: Path

    def __call__(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: cannot be removed: %s", self.path, error.strerror)


def _append(path: Path, to: Path) -> None:
    """Move a file to the end of another; killed in between, it is in both."""
    if path.exists() and not to.exists():
        path.rename(to)
    elif path.exists():
        with to.open("a") as file:
            file.write("\n" + path.read_text(errors="replace"))
        path.unlink()


def _read_metrics(line: str) -> list[Metric] | None:
    """The metrics of a line of kept ones, None where it is damaged."""
    try:
        return [Metric(key, value, at, step) for key, value, at, step in json.loads(line)]
    except (ValueError, TypeError):
        return None


def _deliver(send: Callable[[], Any]) -> None:
    """Deliver one record, and tell refusals from a server that is away."""
    try:
        send()
    except MlflowException as error:
        if error.error_code in _FINAL:
            raise RejectedError(str(error)) from error
        raise


def environment() -> dict[str, Any]:
    """Versions, platform and git commit of this process; no environment variable is read."""
    return {
        "git_commit": git_commit(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(_versions(_PACKAGES)),
    }


def git_commit(directory: Path) -> str | None:
    """The commit checked out around a directory, None outside git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=directory, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """Id of the experiment, made if need be (by whichever process comes first)."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: '{name}' was deleted at the tracking server; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)
