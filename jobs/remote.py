"""The jobs of a cluster, over HTTP: start, list, follow and stop them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prismrec.cluster import state
from prismrec.config import UserError
from prismrec.config.redact import without_passwords

_POLL_S = 0.5
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that say what is uploaded, whatever the level of the process is."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job.

    Args:
        job: its id.
        recipe: name of the recipe; empty for a job that is not ours.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started, ended: seconds since 1970, None before that.
        exit_code: as that of `prismrec train` on this machine would be; None before the end.
        message: what Ray says of it.
    """

    job: str
    recipe: str
    status: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    def to_json(self) -> dict[str, Any]:
        """The document of `prismrec jobs status --json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def exit_code(status: str, driver: int | None) -> int | None:
    """The exit code of an ended job: its own, or 128 and the signal that ended it.

    >>> exit_code("SUCCEEDED", 0), exit_code("FAILED", 2), exit_code("FAILED", -9)
    (0, 2, 137)
    >>> exit_code("STOPPED", None), exit_code("FAILED", None), exit_code("RUNNING", None)
    (143, 1, None)
    """
    if status not in _ENDED:
        return None
    if status == "STOPPED":
        return 128 + signal.SIGTERM
    if driver is None:
        return 0 if status == "SUCCEEDED" else 1
    return 128 - driver if driver < 0 else driver


class LostConnectionError(UserError):
    """The cluster went away while something was asked of it; a job that ran may run on."""

    exit_code = os.EX_TEMPFAIL


class Jobs:
    """The jobs of the cluster at a URL.

    Args:
        address: URL of its dashboard; None for that of this machine's node.

    Raises:
        UserError: there is no such URL, nothing answers, or this machine's token is another one.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _url(address)
        state.use_token(os.environ)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray's own variables would go before
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._told():
            self._client = JobSubmissionClient(self.address)

    def start(self, job: str, entrypoint: str, environment: dict[str, Any], recipe: str) -> str:
        """Start a job and return its id."""
        with self._told():
            return self._client.submit_job(
                submission_id=job,
                entrypoint=entrypoint,
                runtime_env=environment,
                metadata={"job_name": recipe, "prismrec": "train"},
            )

    def list(self) -> list[JobInfo]:
        """Every job that was submitted, the newest first."""
        with self._told():
            found = [_info(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda each: each.started or time.time(), reverse=True)

    def info(self, job: str) -> JobInfo:
        """One job."""
        with self._told(job):
            return _info(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """What the job has printed so far."""
        with self._told(job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> JobInfo:
        """Ask a job to save and leave, wait until it has, and return it; one that ended stays so."""
        with self._told(job):
            self._client.stop_job(job)
        return self.wait(job)

    def wait(self, job: str) -> JobInfo:
        """Wait for the end of a job."""
        while (info := self.info(job)).exit_code is None:
            time.sleep(_POLL_S)
        return info

    def follow(self, job: str, show: Callable[[str], None]) -> JobInfo:
        """Hand on what a job prints until it ends."""

        async def tail() -> None:
            async for part in self._client.tail_job_logs(job):
                show(part)

        while self.info(job).status == "PENDING":
            time.sleep(_POLL_S)
        with self._told(job):
            asyncio.run(tail())
        return self.wait(job)

    @contextmanager
    def _told(self, job: str = "") -> Iterator[None]:
        """Tell in one sentence what the server did not like, or that it is gone."""
        import aiohttp
        import ray
        import requests

        try:
            yield
        except (requests.RequestException, aiohttp.ClientError) as error:
            of_job = f"; the job goes on: `prismrec jobs logs {job} --follow`" if job else ""
            raise LostConnectionError(
                f"the connection to {self.address} was lost ({without_passwords(error)}){of_job}"
            ) from error
        except (ConnectionError, ray.exceptions.AuthenticationError, RuntimeError) as error:
            first = without_passwords(error)
            if job and "does not exist" in str(error):
                raise UserError(
                    f"no job '{job}' at {self.address}; `prismrec jobs list` shows those there are"
                ) from None
            raise UserError(
                f"--address: the jobs at {self.address} cannot be used ({first}); give the dashboard "
                f"that `prismrec cluster up` printed, and its token file as {state.token_file()}"
            ) from error


def _url(address: str | None) -> str:
    if address is None:
        node = state.read_node()
        if node is None or not node.dashboard:
            raise UserError(
                "--address: this machine has no head of a cluster; give the URL of its dashboard"
            )
        return node.dashboard
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address: '{address}' is no URL; jobs go to the dashboard of a cluster, such as "
            "http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def _info(details: Any) -> JobInfo:
    status = str(details.status.value)
    ours = details.metadata or {}
    return JobInfo(
        job=details.submission_id,
        recipe=ours.get("job_name", "") if "prismrec" in ours else "",
        status=status,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=exit_code(status, details.driver_exit_code),
        message=details.message or "",
    )
