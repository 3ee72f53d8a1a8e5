"""What both sides of a test call said, in words: the call is cut into turns, and each is given to a transcriber."""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from wsvoice.dial.report import Side, SpokenWords, TurnReport
from wsvoice.dial.sound_detection import Sound, audible_range
from wsvoice.words import ServiceError, Transcribe

#: A bot that is interrupted has so long for its last words; what it says later belongs to the next turn.
LAST_WORDS_MS = 1500.0
# Silence that is left around what was said, and the least that a transcriber is given: services refuse less than 0.1 s.
_PAD_MS, _LEAST_MS = 200, 500


@dataclass(frozen=True, slots=True)
class Track:
    """One side's sound since the stream started: 16-bit samples, and how many there are in a second."""

    who: Side
    pcm: bytes
    rate: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one side said in one turn, as in :class:`SpokenWords`, and its sound with some silence around it."""

    turn: int
    who: Side
    start_ms: float
    end_ms: float
    pcm: bytes
    rate: int


def cut_into_parts(
    boundaries_ms: Iterable[float],
    turns: Sequence[TurnReport],
    caller: Track,
    bot: Track,
    bot_sounds: Sequence[Sound],
) -> list[Part]:
    """
    Return what there is to transcribe, in the order in which it was said.

    Args:
        boundaries_ms: Where the call is cut; the caller begins to speak there, or begins a step of its own.
        turns: The caller's turns, which number the parts.
        caller: The caller's side.
        bot: The bot's side.
        bot_sounds: When the bot is heard.
    """
    starts = [each.caller_start_ms for each in turns]
    lasts_ms = max(len(each.pcm) * 500 / each.rate for each in (caller, bot))
    cuts = [0.0, *sorted(each for each in set(boundaries_ms) if 0 < each < lasts_ms), lasts_ms]
    parts = []
    for start_ms, end_ms in pairwise(cuts):
        turn = bisect_right(starts, start_ms + 1)
        parts += _audible(caller, turn, start_ms, end_ms)
        parts += _audible(bot, turn, _last_word_ms(start_ms, bot_sounds), _last_word_ms(end_ms, bot_sounds))
    return sorted(parts, key=lambda each: each.start_ms)


def _last_word_ms(boundary_ms: float, sounds: Sequence[Sound]) -> float:
    """Return when the bot has finished what it was saying at a boundary; the boundary itself if it goes on for long."""
    ends = [each.end_ms for each in sounds if each.start_ms < boundary_ms < each.end_ms <= boundary_ms + LAST_WORDS_MS]
    return ends[0] if ends else boundary_ms


def _audible(track: Track, turn: int, start_ms: float, end_ms: float) -> list[Part]:
    """Return the part of a track between two times; none if there is nothing to hear."""
    first, last = (round(each * track.rate / 1000) for each in (start_ms, end_ms))
    pcm = track.pcm[2 * first : 2 * last]
    found = audible_range(pcm, track.rate)
    if found is None:
        return []
    pad, least = (track.rate * each // 1000 for each in (_PAD_MS, _LEAST_MS))
    kept = pcm[2 * max(0, found[0] - pad) : 2 * (found[1] + pad)]
    said = [(first + each) * 1000 / track.rate for each in found]
    return [Part(turn, track.who, said[0], said[1], kept.ljust(2 * least, b"\0"), track.rate)]


async def transcribe_parts(
    parts: Sequence[Part], transcribe: Transcribe, language: str, timeout_s: float
) -> tuple[list[SpokenWords], str | None]:
    """
    Return the words of the parts, and why some are missing; ``None`` if none is.

    Args:
        parts: What was said.
        transcribe: Runs in a thread, which is left behind if it takes too long.
        language: The language that it is told.
        timeout_s: How long all may take, beyond as long as the parts last.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    limit_s = timeout_s + sum(len(each.pcm) / 2 / each.rate for each in parts)
    words: list[SpokenWords] = []
    failure: list[str] = []
    given_up = threading.Event()

    def work() -> None:
        try:
            for each in parts:
                text = transcribe(each.pcm, each.rate, language)
                if given_up.is_set():
                    return
                words.append(SpokenWords(each.turn, each.who, each.start_ms, each.end_ms, text))
        except ServiceError as error:
            failure.append(error.message)
        # Whatever ends this thread, nobody else hears of it.
        except BaseException as error:  # noqa: BLE001 - told as a failure
            failure.append(f"the transcriber failed: {type(error).__name__}")
        finally:
            # The loop is closed if nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

    # A daemon, which nothing waits for: somebody else's code may never return.
    threading.Thread(target=work, name="wsvoice transcriber", daemon=True).start()
    try:
        async with asyncio.timeout(limit_s):
            await done.wait()
        if len(words) < len(parts) and not failure:
            failure.append("the transcriber ended before its time")
    except TimeoutError:
        failure.append(f"the transcriber took longer than {limit_s:.0f} s")
    finally:
        given_up.set()
    return list(words), failure[0] if failure else None
