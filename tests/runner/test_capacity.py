"""How many calls run at once, and who has a share of the places."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest

from wsvoice.call import Call
from wsvoice.runner.capacity import LATENESS_SAMPLES, STRANGER_TTL_S, TOKEN_TTL_S, Capacity, Lateness, call_key

CALL = Call("twilio", "CA1", from_number="+15550100001", to_number="+15550100002")


def call(number: int) -> Call:
    return Call("twilio", f"CA{number}")


class TestCapacity:
    def test_reserving_twice_takes_one_place(self) -> None:
        capacity = Capacity(1)
        assert capacity.reserve(CALL)
        assert capacity.reserve(CALL)
        assert capacity.occupy(None) is None
        place = capacity.occupy(CALL)
        assert place is not None
        assert not capacity.reserve(call(2))
        place.release()
        assert capacity.reserve(call(2))

    def test_a_place_that_is_not_taken_is_given_back(self) -> None:
        now = [0.0]
        capacity = Capacity(1, now=lambda: now[0])
        assert capacity.reserve(CALL)
        now[0] = TOKEN_TTL_S + 1
        assert capacity.occupy(None) is not None

    def test_a_place_is_freed_once(self) -> None:
        capacity = Capacity(2)
        place = capacity.occupy(CALL)
        assert place is not None
        for _ in range(2):
            place.close()
            place.release()
        assert (capacity.active, capacity.running_bots) == (0, 0)

    def test_a_running_call_gets_no_second_place(self) -> None:
        capacity = Capacity(2)
        capacity.reserve(CALL)
        first = capacity.occupy(CALL)
        assert first is not None
        assert capacity.reserve(CALL)
        assert capacity.reserve(call(2))
        assert not capacity.reserve(call(3))
        # The place is kept for its next stream, whether that comes before the end of the first or after it.
        first.release()
        assert not capacity.reserve(call(3))
        second = capacity.occupy(CALL)
        assert second is not None
        assert capacity.reserve(CALL)
        third = capacity.occupy(CALL)
        assert third is not None
        assert capacity.active == 1
        second.release()
        assert capacity.active == 1
        third.release()
        assert capacity.active == 0
        assert capacity.reserve(call(3))

    def test_one_place_is_not_for_many_streams(self) -> None:
        capacity = Capacity(2)
        places = []
        for _ in range(10):
            capacity.reserve(CALL)
            places.append(capacity.occupy(CALL))
        # One of them has its next one beside it, and another place there is.
        assert sum(place is not None for place in places) == 3

    def test_a_call_that_is_over_gives_its_reservation_back(self) -> None:
        capacity = Capacity(1)
        capacity.reserve(CALL)
        capacity.forget(call_key(CALL))
        assert capacity.reserve(call(2))
        running = capacity.occupy(call(2))
        assert running is not None
        capacity.forget(call_key(call(2)))
        assert capacity.active == 1
        assert not capacity.reserve(CALL)

    def test_a_bot_that_lingers_keeps_no_place_unless_too_many_do(self) -> None:
        capacity = Capacity(2)
        lingering = []
        for number in range(4):
            place = capacity.occupy(call(number))
            assert place is not None
            place.close()
            lingering.append(place)
        assert (capacity.active, capacity.running_bots) == (0, 4)
        assert capacity.occupy(call(9)) is None
        lingering.pop().release()
        assert capacity.occupy(call(9)) is not None

    def test_strangers_keep_a_quarter_each_and_half_together(self) -> None:
        now = [0.0]
        capacity = Capacity(8, now=lambda: now[0])
        for stranger in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            for number in range(20):
                # All are answered: there is room, and their streams may find a place.
                assert capacity.reserve(Call("exotel", f"{stranger}-{number}"), stranger=stranger)
        assert capacity.reserved == 4
        assert all(capacity.reserve(call(number)) for number in range(4))
        assert not capacity.reserve(Call("exotel", "x"), stranger="192.0.2.4")
        now[0] = STRANGER_TTL_S + 1
        assert capacity.reserved == 4
        assert not capacity._stranger_counts

    def test_strangers_who_stream_and_say_nothing_leave_half_of_the_places(self) -> None:
        capacity = Capacity(10)
        places = []
        for number in range(10):
            assert capacity.reserve(call(number), stranger="192.0.2.1")
            places.append(capacity.occupy(call(number), is_stranger=True))
        silent = [place for place in places if place is not None]
        assert len(silent) == capacity.active == 5
        # Who has a signature finds room, whatever else strangers ask for.
        for number in range(20, 40):
            capacity.reserve(call(number), stranger=f"192.0.2.{number}")
        for number in range(100, 105):
            assert capacity.reserve(call(number))
            assert capacity.occupy(call(number)) is not None
        assert not capacity.reserve(call(105))
        # A call that has started is one, whoever it is from; and so is one that has gone.
        silent[0].start()
        silent[1].release()
        assert capacity.occupy(call(50), is_stranger=True) is not None
        assert capacity.occupy(call(51), is_stranger=True) is None
        for place in silent:
            place.start()
            place.release()
        assert capacity._silent_strangers == 1

    @pytest.mark.parametrize("limit", [1, 2, 10])
    def test_a_place_that_is_kept_for_a_stranger_is_not_kept_from_a_verified_caller(self, limit: int) -> None:
        capacity = Capacity(limit)
        for number in range(limit):
            capacity.reserve(call(number), stranger="192.0.2.1")
        for number in range(100, 100 + limit):
            assert capacity.reserve(call(number))
        assert not capacity.reserve(call(200))
        assert not capacity.reserve(call(201), stranger="192.0.2.2")
        assert capacity.reserved == limit
        assert not capacity._stranger_counts

    def test_what_one_webhook_costs_does_not_grow_with_what_is_reserved(self) -> None:
        now = [0.0]
        capacity = Capacity(100_000, now=lambda: now[0])
        looked_at = 0

        class Counting(OrderedDict[Any, Any]):
            def __iter__(self) -> Any:
                nonlocal looked_at
                for each in super().__iter__():
                    looked_at += 1
                    yield each

            def values(self) -> Any:
                return (self[each] for each in self)

            def items(self) -> Any:
                return ((each, self[each]) for each in self)

        capacity._reserved = Counting()
        for number in range(5_000):
            assert capacity.reserve(call(number))
        assert looked_at < 3 * 5_000
        now[0] = TOKEN_TTL_S + 1
        assert capacity.reserve(call(-1))
        assert capacity.reserved == 1

    def test_strangers_are_few_where_calls_are_not_limited(self) -> None:
        capacity = Capacity(None)
        for number in range(5000):
            assert capacity.reserve(call(number), stranger=f"192.0.2.{number % 250}")
        assert capacity.reserved <= 500

    def test_strangers_shares_are_of_the_limit_that_applies(self) -> None:
        """A reload may change it."""
        capacity = Capacity(4)
        capacity.limit = 40
        for number in range(30):
            assert capacity.reserve(call(number), stranger="192.0.2.1")
        assert capacity.reserved == 10
        capacity = Capacity(40)
        capacity.limit = 4
        assert [capacity.occupy(None, is_stranger=True) is not None for _ in range(3)] == [True, True, False]


class TestLateness:
    def test_one_stall_is_not_enough(self) -> None:
        lateness = Lateness(0.2)
        for late_s in (0.0, 3.0, 0.0, 0.01, 2.0, 0.0):
            lateness.note(late_s)
            assert not lateness.is_too_late

    def test_it_has_to_be_half_as_late_again(self) -> None:
        lateness = Lateness(0.2)
        for _ in range(LATENESS_SAMPLES):
            lateness.note(0.25)
        assert lateness.is_too_late
        assert lateness.late_s == pytest.approx(0.25)
        for _ in range(LATENESS_SAMPLES):
            lateness.note(0.15)
        assert lateness.is_too_late
        for _ in range(LATENESS_SAMPLES):
            lateness.note(0.05)
        assert not lateness.is_too_late
        for _ in range(LATENESS_SAMPLES):
            lateness.note(0.15)
        assert not lateness.is_too_late

    def test_zero_is_no_limit(self) -> None:
        lateness = Lateness(0)
        for _ in range(LATENESS_SAMPLES):
            lateness.note(10.0)
        assert not lateness.is_too_late
