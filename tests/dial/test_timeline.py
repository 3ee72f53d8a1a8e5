"""The timeline, in the order of its time."""

from __future__ import annotations

from wsvoice.dial.report import TimelineEvent
from wsvoice.dial.timeline import EVENTS_TOLD, Timeline


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 10.0

    def now(self) -> float:
        return self.at

    async def sleep_until(self, when: float) -> None:
        self.at = max(self.at, when)


def test_what_is_noticed_late_stands_in_its_place() -> None:
    told: list[TimelineEvent] = []
    clock = Hand()
    timeline = Timeline(told.append, clock)
    timeline.add("note", "before the stream")
    assert [event.text for event in told] == ["before the stream"]
    timeline.started_at = 10.0
    clock.at = 10.7
    timeline.add("caller-speaks", "c")
    timeline.add("bot-silent", "a", at_ms=100)
    timeline.add("bot-speaks", "b", at_ms=100)
    timeline.advance(800)
    assert [event.text for event in told[1:]] == []
    timeline.advance(900)
    assert [event.text for event in told[1:]] == ["a", "b"]
    clock.at = 11.0
    timeline.add("closed", "d")
    timeline.flush()
    assert [(round(event.at_ms), event.text) for event in told[3:]] == [(700, "c"), (1000, "d")]
    # What a server writes while it is stopped has nothing to wait for.
    timeline.add("log", "e")
    assert told[-1].text == "e"


def test_of_a_kind_only_so_many_are_told_and_a_log_whole() -> None:
    told: list[TimelineEvent] = []
    timeline = Timeline(told.append, Hand())
    for number in range(EVENTS_TOLD + 100):
        timeline.add("mark", f"mark {number}")
        timeline.add("log", "line")
    assert sum(event.kind == "log" for event in told) == EVENTS_TOLD + 100
    marks = [event.text for event in told if event.kind == "mark"]
    assert len(marks) == EVENTS_TOLD + 1
    assert marks[-1] == f"mark {EVENTS_TOLD}; no more events of this kind are shown"


def test_what_happens_is_told_at_once_and_what_happened_in_order() -> None:
    told: list[str] = []
    happening: list[str] = []
    timeline = Timeline(lambda event: told.append(event.text), Hand(), lambda event: happening.append(event.text))
    timeline.started_at = 0.0
    timeline.add("note", "second", at_ms=200)
    timeline.add("note", "first", at_ms=100)
    assert (told, happening) == ([], ["second", "first"])
    timeline.flush()
    assert (told, happening) == (["first", "second"], ["second", "first"])
