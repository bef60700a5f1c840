from __future__ import annotations

import json

from prismrec.data.arrivals import Arrived
from prismrec.data.windows import Position, Slice

HOUR = 3600


def file(name: str, low: int, high: int) -> Arrived:
    return Arrived(name, 100 + len(name), low, high)


def take(position: Position, *files: Arrived, trains_late: bool = True) -> list[bool]:
    return [position.take(each, trains_late=trains_late) for each in files]


def advance(position: Position, lateness: int = 0, *, is_over: bool = False) -> Slice | None:
    return position.advance(HOUR, lateness, is_over=is_over)


def test_a_window_begins_at_a_multiple_and_is_complete_once_later_rows_have_come() -> None:
    position = Position()
    assert advance(position) is None
    assert take(position, file("a", 3700, 7100)) == [False]
    assert advance(position) is None  # 7100 is within the window from 3600 to 7200
    take(position, file("b", 7150, 7200))
    assert advance(position) == Slice("window", 3600, 7200, {"a": 101, "b": 101})
    position.done()
    assert (position.start, position.windows) == (7200, 1)
    assert advance(position) is None  # b's row at 7200 waits for its own window
    assert advance(position, is_over=True) == Slice("window", 7200, 10800, {"b": 101})
    position.done()
    assert advance(position, is_over=True) is None


def test_lateness_holds_a_window_open() -> None:
    position = Position()
    take(position, file("a", 0, 100), file("b", 3600, 3700))
    assert advance(position, lateness=101) is None
    take(position, file("c", 50, 60))  # in time, because the window is still open
    take(position, file("d", 3701, 3701))
    assert advance(position, lateness=101) == Slice("window", 0, 3600, {"a": 101, "c": 101})


def test_late_rows_go_before_the_next_window_and_the_rest_of_their_file_with_its_own() -> None:
    position = Position()
    take(position, file("a", 0, 10), file("b", 3600, 3700))
    assert advance(position) is not None
    position.done()
    assert take(position, file("late", 5, 3650), file("older", 2, 3)) == [True, True]
    assert advance(position) is None  # the window from 3600 on is not complete yet
    take(position, file("c", 7200, 7300))
    assert advance(position) == Slice("late", 2, 3600, {"late": 104, "older": 105})
    position.done()
    assert position.windows == 1
    assert advance(position) == Slice("window", 3600, 7200, {"b": 101, "late": 104})
    assert position.num_late_files == 2
    assert position.late_files == ["late", "older"]


def test_late_rows_are_left_out_where_that_is_asked_for() -> None:
    position = Position()
    take(position, file("a", 0, 10), file("b", 3600, 3700))
    advance(position)
    position.done()
    assert take(position, file("late", 5, 3650), trains_late=False) == [True]
    assert advance(position, is_over=True) == Slice("window", 3600, 7200, {"b": 101, "late": 104})
    position.done()
    assert advance(position, is_over=True) is None


def test_windows_without_rows_are_passed_over() -> None:
    position = Position()
    take(position, file("a", 0, 10), file("b", 100 * HOUR + 5, 100 * HOUR + 6))
    assert advance(position) == Slice("window", 0, HOUR, {"a": 101})
    position.done()
    assert advance(position) is None
    assert advance(position, is_over=True) == Slice("window", 100 * HOUR, 101 * HOUR, {"b": 101})


def test_late_rows_alone_are_trained_on_when_the_stream_is_over() -> None:
    position = Position()
    take(position, file("a", 0, 10))
    advance(position, is_over=True)
    position.done()
    take(position, file("z", 1, 2))
    assert advance(position) is None
    assert advance(position, is_over=True) == Slice("late", 1, 3600, {"z": 101})


def test_times_before_zero() -> None:
    position = Position()
    take(position, file("a", -5, 10))
    assert advance(position, is_over=True) == Slice("window", -3600, 0, {"a": 101})
    position.done()
    assert advance(position, is_over=True) == Slice("window", 0, 3600, {"a": 101})


def test_files_that_are_done_and_gone_are_forgotten() -> None:
    position = Position()
    take(position, file("a", 0, 10), file("b", 5, 4000), file("c", 3600, 7300))
    advance(position)
    position.forget(lambda names: set(names) - {"a", "b"})
    assert position.files == {"b": 101, "c": 101}  # b has rows to come


def test_a_position_survives_json() -> None:
    position = Position()
    take(position, file("a", 0, 10), file("b", 3600, 3700))
    advance(position)
    position.done()
    take(position, file("late", 5, 6), file("c", 7200, 7300))
    advance(position)
    again = Position.from_json(json.loads(json.dumps(position.to_json())))
    assert again == position
    for each in (position, again):
        each.done()
        assert advance(each) == Slice("window", 3600, 7200, {"b": 101})
    assert Position.from_json({}) == Position()
