"""
A caller that goes through the steps of a scenario: it speaks, presses keys, waits, interrupts and hangs up.

Like a :class:`~wsvoice.dial.script.Script` it does no I/O. It notes when each step began and ended, so that what the
bot did in a step can be judged after the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.report import TurnReport
from wsvoice.dial.script import ANSWER_LIMIT_MS, CurrentTurn, PatientSpeaker, Step, Turn, measure_turns
from wsvoice.dial.sound_detection import Sound, SoundDetector

#: What a step waits for once the caller has said its part: that the bot has answered, that it has been silent for a
#: while, that the call ends, or nothing.
Awaits = Literal["answer", "silence", "end", "nothing"]

# How far behind the present the detector is when it still counts as hearing the bot.
_STILL_SPEAKING_MS = 3 * STEP_MS


@dataclass(frozen=True, slots=True)
class Action:
    """
    One step of the caller.

    Attributes:
        name: What messages call it, such as ``step 2 (say "hello")``.
        turn: What the caller says or presses; ``None`` if it only listens.
        interrupt_after_ms: The turn begins once the bot has spoken for so long; ``None`` waits until it has finished.
        awaits: What ends the step.
        wait_ms: How long the bot's silence, or a step without a turn, lasts; ``None`` for no fixed time.
        hangs_up: Whether the caller hangs up, and does nothing else.
    """

    name: str
    turn: Turn | None = None
    interrupt_after_ms: float | None = None
    awaits: Awaits = "answer"
    wait_ms: float | None = None
    hangs_up: bool = False


@dataclass(slots=True)
class StepTimes:
    """
    When a step went on, in milliseconds since the stream started.

    Attributes:
        start_ms: Its beginning: the caller's first sound, where it makes one.
        caller_end_ms: The caller's last sound or digit; `start_ms` where it makes none.
        end_ms: When the caller went on; ``None`` as long as the step lasts.
        problem: Why the caller could not go on, or ``None``.
    """

    start_ms: float
    caller_end_ms: float
    end_ms: float | None = None
    problem: str | None = None


class StepScript(PatientSpeaker):
    """
    Carries out actions, one after the other.

    Attributes:
        times: When each step went on, of those that have begun; by the order of the actions.
    """

    hangs_up_when_done = True

    def __init__(
        self,
        actions: Sequence[Action],
        detector: SoundDetector,
        *,
        sample_rate: int,
        listen_s: float,
        response_timeout_s: float,
    ) -> None:
        super().__init__(
            detector,
            sample_rate=sample_rate,
            listen_s=listen_s,
            response_timeout_s=response_timeout_s,
            no_interruption_reason="the caller follows a scenario",
        )
        self.times: list[StepTimes] = []
        self._actions = list(actions)
        self._turn: CurrentTurn | None = None

    @property
    def _action(self) -> Action:
        return self._actions[len(self.times) - 1]

    @property
    def _now(self) -> StepTimes:
        return self.times[-1]

    @property
    def _is_between(self) -> bool:
        return not self.times or self._now.end_ms is not None

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        step = Step()
        if self.done:
            return step
        if self._is_between and not self._begin_next(now_ms, audible_queued, step):
            return step
        if self._turn is not None and not self._speak(now_ms, self._turn, step):
            return step
        self._wait(now_ms, audible_queued)
        return step

    # Beginning a step

    def _begin_next(self, now_ms: float, audible_queued: bool, step: Step) -> bool:
        """Begin the next step if it may begin, and return whether it has."""
        if len(self.times) == len(self._actions):
            self.done = True
            return False
        action = self._actions[len(self.times)]
        if action.interrupt_after_ms is not None:
            if not self._may_interrupt(now_ms, action, audible_queued):
                return False
            self.interrupted_at_ms = now_ms - STEP_MS
            step.notes.append(("note", "the caller interrupts the bot"))
        elif not self.times and action.turn is not None and not self._may_speak_first(now_ms, audible_queued):
            return False
        begins_ms = now_ms - STEP_MS
        self._turn = None if action.turn is None else CurrentTurn(action.turn, begins_ms, self._rate)
        span = (begins_ms, begins_ms) if self._turn is None else (self._turn.start_ms, self._turn.end_ms)
        self.times.append(StepTimes(*span))
        if action.hangs_up:
            self._finish(now_ms)
            self.done = True
        return not self.done

    def _may_interrupt(self, now_ms: float, action: Action, audible_queued: bool) -> bool:
        since_ms = self._now.caller_end_ms if self.times else 0.0
        spoken = self.detector.since(since_ms)
        problem = None
        if spoken is None:
            if now_ms > since_ms + self._timeout_ms and not audible_queued:
                problem = f"the bot did not speak within {self._timeout_ms / 1000:g} s, so it could not be interrupted"
        elif self.detector.silent_ms(now_ms) <= _STILL_SPEAKING_MS:
            return now_ms - max(spoken.start_ms, since_ms) >= (action.interrupt_after_ms or 0.0)
        elif self._bot_finished(now_ms, audible_queued):
            spoken_ms = self._last_sound.end_ms - max(spoken.start_ms, since_ms)
            problem = f"the bot spoke for {spoken_ms:.0f} ms only, so it could not be interrupted"
        if problem is not None:
            self.times.append(StepTimes(now_ms, now_ms))
            self._fail(now_ms, problem)
        return False

    # Carrying it out

    def _speak(self, now_ms: float, turn: CurrentTurn, step: Step) -> bool:
        """Say or press the turn's next 20 ms, and return whether it is over."""
        turn.step(now_ms, step)
        self.digits_sent += step.digits
        return now_ms >= turn.end_ms and turn.over()

    def _wait(self, now_ms: float, audible_queued: bool) -> None:
        """End the step if what it waits for has come, or came too late."""
        action, since_ms = self._action, self._now.caller_end_ms
        if action.wait_ms is not None:
            if now_ms >= since_ms + action.wait_ms:
                self._finish(now_ms)
        elif action.awaits == "nothing":
            self._finish(now_ms)
        elif action.awaits == "end":
            # It is judged after the call whether it ended as it was to.
            if now_ms >= since_ms + self._timeout_ms and self._bot_finished(now_ms, audible_queued):
                self._finish(now_ms)
        elif self.detector.since(since_ms) is None:
            if now_ms >= since_ms + self._timeout_ms and not audible_queued:
                what = "answer" if action.turn else "speak"
                self._fail(now_ms, f"the bot did not {what} within {self._timeout_ms / 1000:g} s")
        elif self._bot_finished(now_ms, audible_queued) or now_ms > since_ms + ANSWER_LIMIT_MS:
            self._finish(now_ms)

    def _finish(self, now_ms: float) -> None:
        self._now.end_ms = now_ms
        self._turn = None
        if len(self.times) == len(self._actions):
            self.done = True

    def _fail(self, now_ms: float, problem: str) -> None:
        """End the call here: the steps that follow would have no meaning."""
        self._now.problem = problem
        self._finish(now_ms)
        self.failure = f"{self._action.name}: {problem}"
        self.done = True

    @property
    def _last_sound(self) -> Sound:
        return self.detector.sounds[-1]

    # What came of it

    def turns(self) -> list[TurnReport]:
        """Return the steps in which the caller spoke or pressed keys, and the bot's answers."""
        spoken = [each for action, each in zip(self._actions, self.times, strict=False) if action.turn is not None]
        # One that is going on is not over yet; a problem before it began made it none.
        spans = [(each.start_ms, each.caller_end_ms) for each in spoken if not self._is_unspoken(each)]
        return measure_turns(spans, self.detector)

    def boundaries_ms(self) -> list[float]:
        """Return where each step begins, those in which the caller listens included."""
        return [each.start_ms for each in self.times]

    def _is_unspoken(self, times: StepTimes) -> bool:
        is_going_on = times is self._now and self._turn is not None and not self._turn.over()
        return is_going_on or (times.problem is not None and times.start_ms == times.end_ms)

    def missing(self, *, bot_ended: bool) -> str | None:
        """Return why the caller did not come to the end of its steps; a call that was to end so is complete."""
        if self.failure or not bot_ended or self.done:
            return self.failure
        if not self.times:
            return f"the bot ended the call before {self._actions[0].name}"
        action, times = self._action, self._now
        if times.end_ms is None and action.awaits == "end" and (self._turn is None or self._turn.over()):
            return None
        if times.end_ms is None:
            is_answered = action.wait_ms is None and self.detector.since(times.caller_end_ms) is not None
            if not is_answered:
                return f"the bot ended the call in {action.name}"
            if len(self.times) == len(self._actions):
                return None
        return f"the bot ended the call before {self._actions[len(self.times)].name}"
