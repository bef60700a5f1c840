"""An iterator that runs ahead on a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_END = object()


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, made on a thread that keeps up to `depth` of them ready.

    An error in the thread is raised where the items are read. Closing the iterator, or dropping it,
    ends the thread and closes `items`.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_produce, args=(items, ready, stopped), name="prismrec-reader", daemon=True
    )
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            _empty(ready)  # a thread that waits for room must get it to see that it was stopped
            thread.join(timeout=0.005)


def _produce(
    items: Generator[T, None, None], ready: queue.Queue[Any], stopped: threading.Event
) -> None:
    try:
        for item in items:
            ready.put(item)
            if stopped.is_set():
                break
        ready.put(_END)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the reader of the items must see it
        ready.put(_Failed(error))
    finally:
        items.close()


def _empty(ready: queue.Queue[Any]) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        return
