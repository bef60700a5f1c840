"""The queue between training and the tracking server."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from prismrec.tracking.delivery import Delivery, RejectedError


def test_records_wait_for_the_server_and_keep_their_order() -> None:
    is_up = threading.Event()
    seen: list[int] = []

    def send(number: int) -> None:
        if not is_up.is_set():
            raise ConnectionError("server is down")
        seen.append(number)

    delivery = Delivery("test", longest_wait_s=0.05)
    started = time.monotonic()
    for number in range(50):
        delivery.put(lambda number=number: send(number))
    assert time.monotonic() - started < 0.4  # the first attempt alone waits 0.5 s for the next
    assert not delivery.flush(timeout_s=0.05)
    is_up.set()
    assert delivery.close(timeout_s=10) == 0
    assert seen == list(range(50))


def test_a_refused_record_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def refused() -> None:
        raise RejectedError("value was changed")

    delivery = Delivery("test")
    delivery.put(refused)
    delivery.put(lambda: seen.append("next"))
    with caplog.at_level(logging.WARNING):
        assert delivery.close(timeout_s=10) == 0
    assert seen == ["next"]
    assert "refused a record, which is dropped: value was changed" in caplog.text


def test_what_is_never_taken_is_counted_and_the_thread_ends() -> None:
    def down() -> None:
        raise OSError("down")

    delivery = Delivery("test-never")
    delivery.put(down)
    delivery.put(down)
    assert delivery.close(timeout_s=0.1) == 2
    with pytest.raises(ValueError, match="after the tracker was closed"):
        delivery.put(down)
    deadline = time.monotonic() + 5
    while any(thread.name == "test-never" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
