"""Follows an alias of the registry, and tells when another version has it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from prismrec.config import UserError
from prismrec.tracking.registry import Registry, ResolvedModel

_log = logging.getLogger(__name__)

RETRY_S = 60.0
"""Seconds before a version that could not be taken over is tried again."""


class AliasWatch:
    """Looks at the registry again and again, in a thread of its own.

    Args:
        registry: where the model is.
        model: a name such as `models:/ctr@champion`.
        version: the version that has it now.
        take_over: told of another version, whose files may be gone once it returns; what it raises
            is logged, the version stays as it was, and is tried again after `RETRY_S` seconds, with
            the files that were fetched the first time.
        failed: told of each look or take-over that failed.
    """

    def __init__(
        self,
        registry: Registry,
        model: str,
        version: int,
        take_over: Callable[[ResolvedModel], None],
        failed: Callable[[], None],
    ) -> None:
        self._registry, self._model = registry, model
        self.version = version
        self._take_over, self._failed = take_over, failed
        self._refused: tuple[int, float] | None = None
        self._found: ResolvedModel | None = None
        self._files = ExitStack()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every_s: float) -> None:
        """Look every `every_s` seconds until `stop`."""
        self._thread = threading.Thread(
            target=self._run, args=(every_s,), name="alias-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._forget()

    def look(self) -> bool:
        """Look once; whether another version was taken over."""
        try:
            info = self._registry.show(self._model)
            if self._refused is not None and self._refused[0] != info.version:
                self._forget()
            if info.version == self.version or self._is_too_early(info.version):
                return False
            self._refused = (info.version, time.monotonic())
            if self._found is None:
                self._found = self._files.enter_context(self._registry.resolve(info.uri))
            self._take_over(self._found)
        except UserError as error:
            _log.warning("%s stays at version %d: %s", self._model, self.version, error.message)
        except Exception:  # noqa: BLE001 - whatever is wrong with a version, the one before serves on
            _log.exception("%s stays at version %d", self._model, self.version)
        else:
            _log.info("%s: version %d after %d", self._model, info.version, self.version)
            self.version = info.version
            self._forget()
            return True
        self._failed()
        return False

    def _forget(self) -> None:
        """Let go of a version that was refused or taken over, and of its files."""
        self._refused = self._found = None
        self._files.close()

    def _is_too_early(self, version: int) -> bool:
        if self._refused is None or self._refused[0] != version:
            return False
        return time.monotonic() - self._refused[1] < RETRY_S

    def _run(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            self.look()
