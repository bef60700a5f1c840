import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismrec.config import UserError
from prismrec.data.lanes import Lanes, ReaderState, Share
from prismrec.data.ledger import Ledger
from prismrec.data.order import Part, tiles


def test_cut_lanes_are_equal_plus_or_minus_one() -> None:
    lanes = Lanes(11, 4, 2)
    assert lanes.lengths == (3, 3, 3, 2)
    assert [lanes.start(lane) for lane in range(4)] == [0, 3, 6, 9]
    assert lanes.steps((0, 0, 0, 0)) == 2
    assert lanes.after((0, 0, 0, 0), 1) == (2, 2, 2, 2)
    assert lanes.after((0, 0, 0, 0), 2) == (3, 3, 3, 2)


def test_dealt_lanes_take_turns() -> None:
    lanes = Lanes(11, 4, 2, dealt=True)  # 01 23 45 67 | 89 10
    assert lanes.lengths == (4, 3, 2, 2)
    assert lanes.after((0, 0, 0, 0), 1) == (2, 2, 2, 2)
    assert lanes.steps((2, 2, 2, 2)) == 1


def test_ranks_own_consecutive_lanes() -> None:
    lanes = Lanes(100, 6, 1)
    assert [lanes.owned(Share(rank, 3)) for rank in range(3)] == [
        range(0, 2),
        range(2, 4),
        range(4, 6),
    ]
    with pytest.raises(UserError, match="6 lanes cannot be shared out to 4 ranks; 8 lanes can"):
        lanes.owned(Share(0, 4))


def test_a_state_of_other_lanes_is_refused() -> None:
    with pytest.raises(UserError, match="2 lanes and the recipe 4; resume with data.lanes = 2"):
        Lanes(11, 4, 2).check((0, 0))
    with pytest.raises(UserError, match="lane 3: the state to resume from is at row 3 of 2"):
        Lanes(11, 4, 2).check((3, 3, 3, 3))
    with pytest.raises(UserError, match="finished with the batch size it was begun with"):
        Lanes(11, 4, 1, dealt=True).check((2, 0, 0, 0))


def test_a_state_survives_json() -> None:
    state = ReaderState(3, (4, 5))
    assert ReaderState.from_json(state.to_json()) == state


def test_a_ledger_merges_ranges_and_refuses_rows_twice() -> None:
    ledger = Ledger()
    ledger.add(0, (0, 0), (4, 3))
    ledger.add(0, (8, 3), (9, 3))
    ledger.add(0, (4, 3), (8, 5))
    ledger.add(1, (0, 0), (2, 2))
    assert ledger.ranges(0) == (((0, 9),), ((0, 5),))
    assert ledger.num_rows == 18
    assert ledger.epochs == (0, 1)
    assert Ledger.from_json(ledger.to_json()).to_json() == ledger.to_json()
    with pytest.raises(ValueError, match=r"epoch 0, lane 1: rows 4\.\.5 twice"):
        ledger.add(0, (9, 4), (9, 6))
    with pytest.raises(ValueError, match="lane 0 went back from row 9 to 8"):
        ledger.add(0, (9, 5), (8, 5))


@settings(derandomize=True, deadline=None)
@given(
    width=st.integers(1, 6), bounds=st.tuples(st.integers(0, 6), st.integers(0, 6)), data=st.data()
)
def test_tiles_place_every_row_of_a_part_once(
    width: int, bounds: tuple[int, int], data: st.DataObject
) -> None:
    low, high = sorted(min(bound, width) for bound in bounds)
    offset, rows = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 20))
    part, source = Part(width, low, high, 1), np.arange(offset, offset + rows)
    block = np.full((40, 8), -1)
    for tile in tiles(part, offset, rows):
        block[tile.steps, tile.columns] = tile.shape(source)
    expected = np.full((40, 8), -1)
    for row in source.tolist():
        step, phase = divmod(row, width)
        if low <= phase < high:
            expected[step, 1 + phase - low] = row
    assert (block == expected).all()
