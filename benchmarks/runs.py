"""One run: calls placed to a server, what they showed, and whether it counts."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
import uvloop
from load import RATE, Caller, Lag, ask_webhook, call_all, exact_lags, jitter_s, latencies, resampled_lags
from servers import Server, Usage, Work, memory_kb, process_time_s
from sounds import conversation, noise, sentences
from speech import Events, expected_speech

#: A caller that is late itself has measured nothing; 99 of 100 frames are sent sooner than this after they are due.
MAX_LATE_S = 0.005
#: Other programs may use this share of the servers' core.
MAX_FOREIGN_SHARE = 0.05
#: What of a run is not measured: the pipelines are being set up.
SKIP_S = 2.0
#: A frame later than this is heard as a gap.
LATE_S = 0.06
#: How many runs in a row may be thrown away: for the server's sake, and for others'.
MAX_FAILURES, MAX_DISTURBANCES = 4, 20
#: How long a server stands still in a run that measures what is left of it, and when that is looked at.
STALL_S, STALL_AFTER_S, LEFT_FROM_S, LEFT_TO_S = 0.2, 2.0, 1.0, 2.0
STALL_CALL_S = SKIP_S + STALL_AFTER_S + STALL_S + LEFT_TO_S + 1.5
#: How often metrics are asked for, and the spans with and without it, which take turns A B B A.
SCRAPE_EVERY_S, SCRAPED_S, SCRAPED = 0.1, 2.0, (False, True, True, False) * 3
#: How long a bot may take to write down what it heard, and how much of the end of a call it may not have heard.
EVENTS_TIMEOUT_S, EVENTS_END_MS = 5.0, 1500

T = TypeVar("T")
_numbers = iter(range(1, 10**6))


class Failed(Exception):
    """A run shows nothing: a call failed, or what was heard is not what was said."""


class Disturbed(Failed):
    """A run shows nothing of the server: the callers were late themselves, or other programs used its core."""


@dataclass
class Run:
    """
    What one run showed; times in milliseconds.

    Attributes:
        cores, callers_cores: How many cores' time the server and the callers have used.
    """

    cpu_ms: float
    cores: float
    callers_cores: float
    latencies_ms: np.ndarray
    jitters_ms: np.ndarray
    setup_ms: list[float]
    late_share: float
    growing_ms: float


@dataclass
class Stall:
    """
    What is left of a stall, by call.

    Attributes:
        before_ms: The latency before it.
        left_ms: By how much the latency is longer from one second to two after it.
        lost_ms: How much of the caller's audio was lost; negative if silence was put in.
    """

    before_ms: list[float]
    left_ms: list[float]
    lost_ms: list[float]


def run(server: Server, work: Work, calls: int, seconds: float, *, at_once: bool = False) -> Run:
    """
    Place `calls` calls of `seconds` each.

    Raises:
        Failed: If a call failed, or an echo was not its caller's own.
        Disturbed: If the callers were late, or other programs used the server's core.
    """
    callers = make_callers(work, calls, seconds)
    measured_s = max(1.0, seconds - SKIP_S - 1.0 - (0 if at_once else calls * 0.02))

    async def used() -> tuple[float, float]:
        await asyncio.sleep(SKIP_S)
        before = Usage.of(server)
        await asyncio.sleep(measured_s)
        return share(server, before), Usage.of(server).callers_share(before)

    cores, callers_cores = place(server, callers, used, at_once=at_once)
    note_speech(server, work, callers, seconds)
    took, growing = [np.zeros(1)], [0.0]
    if work.bot == "echo":
        exact = bool(work.rate) or server.name == "bare"
        took = [latencies(each, lags(each, exact=exact), skip_s=SKIP_S).took_s for each in callers]
        halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in took if len(each) > 20]
        growing = [float(np.median(later) - np.median(sooner)) for sooner, later in halves]
    together = np.concatenate(took)
    return Run(
        cpu_ms=cores / calls * 1000,
        cores=cores,
        callers_cores=callers_cores,
        latencies_ms=together * 1000,
        jitters_ms=np.concatenate([jitter_s(each, skip_s=SKIP_S) for each in callers]) * 1000,
        setup_ms=[((each.first_at or 0) - each.began_at) * 1000 for each in callers],
        late_share=float(np.mean(together > LATE_S)),
        growing_ms=statistics.median(growing or [0.0]) * 1000,
    )


def run_stalled(server: Server, work: Work, calls: int) -> Stall:
    """
    Stop the server's process for 200 ms in the middle of `calls` echoes.

    Raises:
        Failed, Disturbed: As :func:`run`.
    """
    callers = make_callers(work, calls, STALL_CALL_S + calls * 0.02)

    async def stall() -> tuple[float, float]:
        await asyncio.sleep(SKIP_S)
        before = Usage.of(server)
        await asyncio.sleep(STALL_AFTER_S)
        stopped_at = time.monotonic()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STALL_S)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        resumed_at = time.monotonic()
        await asyncio.sleep(LEFT_TO_S)
        share(server, before)
        return stopped_at, resumed_at

    stopped_at, resumed_at = place(server, callers, stall)
    shown = Stall([], [], [])
    for caller in callers:
        its_lags = lags(caller, exact=False)
        sent_at, took_s = latencies(caller, its_lags, skip_s=SKIP_S)
        # What was under way when the server was stopped was held up by it.
        before_s = took_s[sent_at < stopped_at - 0.5]
        after_s = took_s[(sent_at >= resumed_at + LEFT_FROM_S) & (sent_at < resumed_at + LEFT_TO_S)]
        if not len(before_s) or not len(after_s):
            raise Failed(f"call {caller.number} has no echo before or after the stall")
        shown.before_ms.append(float(np.median(before_s)) * 1000)
        shown.left_ms.append(float(np.median(after_s)) * 1000 - shown.before_ms[-1])
        shown.lost_ms.append((its_lags[0][2] - its_lags[-1][2]) / RATE * 1000)
    return shown


def run_first(server: Server) -> dict[str, float]:
    """
    Return how long a server took that was started just now, in milliseconds, with the first call placed at once.

    Raises:
        Failed, Disturbed: As :func:`run`.
    """
    shown = {"listening_ms": server.listening_at - server.started.at}
    if server.name != "bare":
        ask_webhook(server.url, next(_numbers))
        shown["answered_ms"] = time.monotonic() - server.started.at
    (caller,) = callers = [Caller(next(_numbers), noise(0, 1.0))]

    async def nothing() -> None: ...

    place(server, callers, nothing, at_once=True)
    share(server, server.started)
    assert caller.first_at is not None
    shown["first_call_ms"] = caller.first_at - caller.began_at
    shown["first_audio_ms"] = caller.first_at - server.started.at
    return {name: seconds * 1000 for name, seconds in shown.items()}


def run_remembered(server: Server, work: Work, calls: int, seconds: float) -> dict[str, float]:
    """
    Return how much memory each of `calls` calls takes, in MiB: ``rss``, and ``pss`` where the system says it.

    Raises:
        Failed, Disturbed: As :func:`run`.
    """
    callers = make_callers(work, calls, seconds)
    before = memory_kb(server.pid)

    async def remembered() -> dict[str, int]:
        await asyncio.sleep(SKIP_S)
        return memory_kb(server.pid)

    during = place(server, callers, remembered)
    return {name: (during[name] - before[name]) / calls / 1024 for name in before}


def run_scraped(server: Server, work: Work, calls: int) -> dict[str, float]:
    """
    Return what asking for the metrics ten times a second costs beside `calls` calls.

    Seconds with and without take turns. Only the process that answers counts, not its workers.

    Returns:
        Its processor time in percent of a core, without scrapes and with them, and the difference.

    Raises:
        Failed, Disturbed: As :func:`run`.
    """
    callers = make_callers(work, calls, SKIP_S + len(SCRAPED) * SCRAPED_S + calls * 0.02 + 1.0)

    async def watch() -> dict[bool, list[float]]:
        await asyncio.sleep(SKIP_S)
        shares: dict[bool, list[float]] = {False: [], True: []}
        for is_scraped in SCRAPED:
            began, used_s = time.monotonic(), process_time_s(server.pid)
            await (scrape(server, SCRAPED_S) if is_scraped else asyncio.sleep(SCRAPED_S))
            shares[is_scraped].append((process_time_s(server.pid) - used_s) / (time.monotonic() - began) * 100)
        return shares

    shares = place(server, callers, watch)
    without, scraped = (statistics.mean(shares[each]) for each in (False, True))
    return {"unscraped_percent": without, "scraped_percent": scraped, "scrapes_percent": scraped - without}


async def scrape(server: Server, seconds: float) -> None:
    """
    Ask for the metrics ten times a second, over one connection, as Prometheus does.

    Raises:
        Failed: If they are not answered.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.metrics_port)
    until = due = time.monotonic()
    until += seconds
    try:
        while due < until:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/plain\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"(?i)^content-length: (\d+)\r$", head, re.MULTILINE)
            if not head.startswith(b"HTTP/1.1 200") or found is None:
                raise Failed(f"the metrics were answered {head[:60]!r}")
            await reader.readexactly(int(found[1]))
            due += SCRAPE_EVERY_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
    except asyncio.IncompleteReadError as error:
        raise Failed("the metrics were not answered") from error
    finally:
        writer.close()


def tried(server: Server, make: Callable[[], T]) -> T:
    """
    Return what a run shows that counts; what is thrown away is said, and counted with its server.

    Raises:
        Failed: If too many runs in a row were thrown away.
    """
    failures = disturbances = 0
    while True:
        try:
            return make()
        except (Failed, OSError) as error:
            server.thrown_away.append(str(error))
            print(f"thrown away ({server.name}): {error}", file=sys.stderr)
            disturbances += isinstance(error, Disturbed)
            failures += not isinstance(error, Disturbed)
            if failures == MAX_FAILURES or disturbances == MAX_DISTURBANCES:
                raise Failed(f"{failures + disturbances} runs in a row were thrown away, the last: {error}") from None
            time.sleep(1)


# The calls


def make_callers(work: Work, calls: int, seconds: float) -> list[Caller]:
    """Return callers that nobody was before, who say what such callers always say."""
    return [Caller(next(_numbers), _said(work, index, seconds)) for index in range(calls)]


def _said(work: Work, index: int, seconds: float) -> bytes:
    make = conversation if work.bot == "conversation" else sentences if work.vad else noise
    return make(index, seconds)


def place(server: Server, callers: list[Caller], watch: Callable[[], Awaitable[T]], *, at_once: bool = False) -> T:
    """
    Place the calls, and return what `watch` returns, which begins when all are connected.

    Raises:
        Failed: If a call failed.
        Disturbed: If the callers were late, or `watch` was disturbed.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, no_garbage_collection():
        shown = runner.run(_place(server, callers, watch, at_once=at_once))
    for caller in callers:
        if caller.failure and server.name != "bare":
            raise Failed(f"call {caller.number}: {caller.failure}")
        if caller.first_at is None:
            raise Failed(f"call {caller.number} heard nothing")
    late_s = float(np.percentile(np.concatenate([each.late_s for each in callers]), 99))
    # Where they share its cores, their lateness is the server's doing, and counts.
    if late_s > MAX_LATE_S and not server.has_callers:
        raise Disturbed(f"the callers were {late_s * 1000:.1f} ms late themselves")
    return shown


async def _place(server: Server, callers: list[Caller], watch: Callable[[], Awaitable[T]], *, at_once: bool) -> T:
    settled = asyncio.Event()

    async def watch_when_settled() -> T:
        await settled.wait()
        return await watch()

    watching = asyncio.create_task(watch_when_settled())
    try:
        await call_all(server.url, callers, at_once=at_once, settled=settled)
        return await watching
    finally:
        watching.cancel()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the callers from stopping to collect garbage."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def share(server: Server, before: Usage) -> float:
    """Return the server's share of its core since `before`, or raise Disturbed if others had too much of it."""
    now = Usage.of(server)
    foreign = now.foreign_share(before, server)
    if foreign is not None and foreign > MAX_FOREIGN_SHARE:
        raise Disturbed(f"other programs used {foreign:.0%} of the server's core{'s'[: len(server.cores) > 1]}")
    return now.own_share(before)


def lags(caller: Caller, *, exact: bool) -> list[Lag]:
    """
    Return by how much a caller's echo lags.

    Raises:
        Failed: If it is not the caller's own.
    """
    try:
        return exact_lags(caller) if exact else resampled_lags(caller)
    except ValueError as error:
        raise Failed(f"call {caller.number}: {error}") from None


# What a bot took for speech


def note_speech(server: Server, work: Work, callers: list[Caller], seconds: float) -> None:
    """
    Remember which speech the server's bots heard, by what their callers said.

    Raises:
        Failed: If a bot did not write it down, or heard none.
    """
    if not work.vad or server.name == "bare":
        return
    wanted = {f"CA{each.number:032x}": index for index, each in enumerate(callers)}
    until, found = time.monotonic() + EVENTS_TIMEOUT_S, dict[str, Events]()
    while True:
        lines = server.events.read_text().splitlines() if server.events.exists() else []
        found = {each["call"]: each["events"] for each in map(json.loads, lines) if each["call"] in wanted}
        if len(found) == len(wanted):
            break
        if time.monotonic() > until:
            raise Failed(f"{len(wanted) - len(found)} bots did not write down what speech they heard")
        time.sleep(0.05)
    for call, index in wanted.items():
        events = _heard_early([(kind, at) for kind, at in found[call]], seconds)
        if not events:
            raise Failed(f"the bot of call {index + 1} heard no speech")
        server.speech.setdefault((index, seconds), []).append(events)


def _heard_early(events: Events, seconds: float) -> Events:
    """Return the events that a bot has certainly heard before the end of a call."""
    return [(kind, at) for kind, at in events if at < seconds * 1000 - EVENTS_END_MS]


def differing_speech(work: Work, servers: list[Server]) -> list[str]:
    """
    Return, in words, where a bot heard other speech than it had to, in any run.

    Each has to hear, to the millisecond, what is in the audio as its server converts it, and all of them the same
    sentences. Not at the same times: at pipecat's own rates, each server cuts the audio differently, and the model
    judges whole windows of it.
    """
    differences, kinds = [], dict[tuple[int, float], dict[str, list[str]]]()
    for server in servers:
        for (index, seconds), runs in sorted(server.speech.items()):
            expected = _heard_early(expected_speech(server.name, work.rate, _said(work, index, seconds)), seconds)
            kinds.setdefault((index, seconds), {})[server.name] = [kind for kind, _ in expected]
            differences += [
                f"caller {index + 1}: {server.name} {events}, but its audio has {expected}"
                for events in runs
                if events != expected
            ]
    for (index, _), by_server in kinds.items():
        for (one, ours), (other, theirs) in combinations(by_server.items(), 2):
            if ours != theirs:
                differences.append(f"caller {index + 1}: the audio of {one} has {ours}, that of {other} {theirs}")
    return differences
