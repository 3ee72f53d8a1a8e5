"""
Putting audio back into order: nothing waits that need not, nothing is lost that came in time.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsvoice.providers.events import Audio, Digit, Event, Mark
from wsvoice.providers.reordering import WINDOW, Item, Reorderer


def piece(chunk: int | None, track: str = "inbound", at_ms: int | None = None) -> Audio:
    return Audio(b"\xff" * 160, track, chunk, at_ms)


def chunks(items: list[Item]) -> list[int | None]:
    for event, raw in items:
        assert raw == repr(event), "an event has the message of another"
    return [event.chunk for event, _ in items if isinstance(event, Audio)]


def push(reorderer: Reorderer, event: Event) -> list[Item]:
    return reorderer.push(event, repr(event))


def pushed(reorderer: Reorderer, *numbers: int) -> list[list[int | None]]:
    """Push pieces 20 ms apart, and return what came out after each."""
    return [chunks(push(reorderer, piece(number, at_ms=20 * number))) for number in numbers]


@given(first=st.integers(0, 1) | st.integers(WINDOW + 1, 2**40), count=st.integers(1, 50))
def test_what_is_in_order_never_waits(first: int, count: int) -> None:
    reorderer = Reorderer()
    for chunk in range(first, first + count):
        event = piece(chunk)
        released = push(reorderer, event)
        assert len(released) == 1
        assert released[0][0] is event
    assert reorderer.flush() == []
    assert reorderer.dropped == 0


def test_a_swapped_pair_waits_for_no_more_than_its_other_half() -> None:
    reorderer = Reorderer()
    assert pushed(reorderer, 1, 3, 2, 4, 5) == [[1], [], [2, 3], [4], [5]]


def test_the_very_first_pair_may_be_swapped() -> None:
    assert pushed(Reorderer(), 2, 1, 3) == [[], [1, 2], [3]]


def test_a_lost_piece_is_given_up_when_the_window_is_full() -> None:
    reorderer = Reorderer(window=3)
    assert pushed(reorderer, 1, 3, 4, 5, 6, 7) == [[1], [], [], [], [3, 4, 5, 6], [7]]
    assert reorderer.dropped == 0


def test_what_comes_after_it_was_given_up_is_dropped() -> None:
    reorderer = Reorderer(window=2)
    assert pushed(reorderer, 1, 3, 4, 5, 2, 6) == [[1], [], [], [3, 4, 5], [], [6]]
    assert reorderer.dropped == 1


def test_several_gaps_are_given_up_one_by_one() -> None:
    reorderer = Reorderer(window=2)
    assert pushed(reorderer, 1, 3, 5, 7, 8, 6, 9) == [[1], [], [], [3], [5], [6, 7, 8], [9]]


@pytest.mark.parametrize("numbers", [(1, 2, 2, 3), (1, 3, 3, 2), (1, 2, 3, 1)])
def test_what_comes_twice_is_dropped(numbers: tuple[int, ...]) -> None:
    reorderer = Reorderer()
    released = [chunk for each in pushed(reorderer, *numbers) for chunk in each]
    assert released == [1, 2, 3]
    assert reorderer.dropped == 1


@given(seed=st.integers(0, 2**32), count=st.integers(1, 60))
def test_any_order_within_the_window_is_mended(seed: int, count: int) -> None:
    # Sorting by a key that is off by less than the window puts no piece further from its place than that.
    chance = random.Random(seed)
    arrivals = sorted(range(1, count + 1), key=lambda number: number + chance.uniform(0, WINDOW))
    reorderer = Reorderer()
    released = [chunk for number in arrivals for chunk in chunks(push(reorderer, piece(number)))]
    released += chunks(reorderer.flush())
    assert released == list(range(1, count + 1))
    assert reorderer.dropped == 0


@given(numbers=st.lists(st.integers(0, 30), max_size=60), window=st.integers(1, 8))
def test_nothing_comes_out_that_did_not_go_in_and_little_waits(numbers: list[int], window: int) -> None:
    reorderer = Reorderer(window)
    released = 0
    for count, number in enumerate(numbers, start=1):
        released += len(push(reorderer, piece(number)))
        assert count - released - reorderer.dropped <= window
    released += len(reorderer.flush())
    assert released + reorderer.dropped == len(numbers)


@pytest.mark.parametrize("event", [Mark("m"), Digit("1"), piece(None)])
def test_other_events_come_out_behind_all_that_waits(event: Event) -> None:
    reorderer = Reorderer()
    pushed(reorderer, 1, 4, 3)
    third, fourth, last = push(reorderer, event)
    assert chunks([third, fourth]) == [3, 4]
    assert last[0] is event
    # The gap was given up with it.
    assert pushed(reorderer, 2, 5) == [[], [5]]


def test_tracks_are_counted_by_themselves() -> None:
    reorderer = Reorderer()
    assert chunks(push(reorderer, piece(1, "inbound"))) == [1]
    assert chunks(push(reorderer, piece(1, "outbound"))) == [1]
    assert chunks(push(reorderer, piece(3, "inbound"))) == []
    assert chunks(push(reorderer, piece(2, "outbound"))) == [2]
    assert chunks(push(reorderer, piece(2, "inbound"))) == [2, 3]


def test_a_count_that_starts_again_is_told_by_its_time() -> None:
    reorderer = Reorderer()
    pushed(reorderer, *range(1, 11))
    assert chunks(push(reorderer, piece(1, at_ms=220))) == [1]
    assert chunks(push(reorderer, piece(2, at_ms=240))) == [2]
    assert reorderer.dropped == 0


@pytest.mark.parametrize("at_ms", [None, 0])
def test_a_count_that_starts_again_is_not_dropped_for_ever(at_ms: int | None) -> None:
    reorderer = Reorderer(window=3)
    for number in range(1, 11):
        push(reorderer, piece(number, at_ms=at_ms))
    released = [chunk for number in range(1, 9) for chunk in chunks(push(reorderer, piece(number, at_ms=at_ms)))]
    assert released == [4, 5, 6, 7, 8]
    assert reorderer.dropped == 3


def test_audio_without_numbers_passes_as_it_is() -> None:
    reorderer = Reorderer()
    for at_ms in (40, 20, 20, None):
        event = piece(None, at_ms=at_ms)
        assert push(reorderer, event) == [(event, repr(event))]
    assert reorderer.dropped == 0
