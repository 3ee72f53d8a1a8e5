"""
Many calls, from the first to the report: prepares them, begins them one after the other, and judges what came of them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from statistics import median
from urllib.parse import urlsplit

import numpy as np

from wsvoice.config import DialConfig
from wsvoice.dial.addresses import AddressPolicy
from wsvoice.dial.clock import Clock
from wsvoice.dial.load.crew import BUSY_SHARE, CALLS_PER_WORKER, Crew, free_cores
from wsvoice.dial.load.judge import Outcome, judge, judge_step, with_knee
from wsvoice.dial.load.knee import Knee, Step, find_knee
from wsvoice.dial.load.listening import Hearing
from wsvoice.dial.load.orders import Begin, Ended, HangUp, Job, Up
from wsvoice.dial.load.plan import LoadPlan, allow_descriptors, plan_load
from wsvoice.dial.load.report import Client, Figures, LoadReport
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.report import TimelineEvent
from wsvoice.dial.serving import Serving
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.target import Target, parse_target
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
from wsvoice.dial.webhook import Webhook
from wsvoice.http import is_loopback
from wsvoice.providers import load_simulator
from wsvoice.providers.base import Command

#: How often progress is told.
TELL_S = 0.5
#: How many calls a worker has to have for a guess at how many it could play.
LEAST_CALLS = 20
_ALWAYS = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Progress:
    """
    How far it is.

    Attributes:
        calls: How many calls there are.
        begun: How many were begun.
        up: How many are up.
        ended: How many have ended.
        failed: How many of these failed.
        cpu_share: How much of a core the busiest worker uses.
    """

    calls: int
    begun: int
    up: int
    ended: int
    failed: int
    cpu_share: float


@dataclass(frozen=True)
class Watcher:
    """Who is told what happens: each progress, each step of the search, and what the served bot's process wrote."""

    on_progress: Callable[[Progress], None] = lambda progress: None
    on_step: Callable[[Step], None] = lambda step: None
    on_line: Callable[[str], None] = lambda line: None

    def on_event(self, event: TimelineEvent) -> None:
        """Pass on what the process wrote, of all that happens beside the calls."""
        if event.kind == "log":
            self.on_line(event.text)


async def place_calls(
    config: DialConfig, watcher: Watcher | None = None, *, clock: Clock | None = None, timeouts: Timeouts | None = None
) -> LoadReport:
    """
    Place many calls at once, or look for the knee.

    If it is cancelled, calls are hung up in good order, and the report is of what there was until then.

    Args:
        config: How many calls, whom to call, and what to say.
        watcher: Is told what happens.
        clock: The clock by which calls are begun; the system's unless given.
        timeouts: How long to wait for the other end.

    Raises:
        UsageError: If the calls cannot be placed as the user asked.
        DialError: If the bot cannot be served.
    """
    plan, target = plan_load(config), parse_target(config.target)
    allow_descriptors(plan.concurrency)
    watcher, clock = watcher or Watcher(), clock or Clock()
    provider = load_simulator(config.transport, config.credentials, config.quirks)
    behaviour, timeline = read_behaviour(provider), Timeline(watcher.on_event, clock)
    setup = CallSetup(config, target.kind == "bot", provider, behaviour, timeline, clock, timeouts or Timeouts())
    async with AsyncExitStack() as stack:
        run = _Run(setup, plan, target, watcher)
        await run.prepare(stack)
        return await (run.look_for_knee() if plan.find_knee else run.place())


class _Run:
    """One run, with what its calls have in common."""

    def __init__(self, setup: CallSetup, plan: LoadPlan, target: Target, watcher: Watcher) -> None:
        self._setup = setup
        self._plan = plan
        self._target = target
        self._watcher = watcher
        self._serving: Serving | None = None
        self._steps: list[Step] = []
        # Of the calls that are placed together.
        self._calls = 0
        self._begun: dict[int, asyncio.Future[Ended]] = {}
        self._numbers: dict[str, int] = {}
        self._ups: dict[int, float] = {}
        self._interrupted = False

    # Before the first call

    async def prepare(self, stack: AsyncExitStack) -> None:
        """Serve the bot if it is a file, find out where the calls go, and start the workers."""
        setup, url = self._setup, self._target.value
        addresses = AddressPolicy(url, allow_private=setup.config.allow_private)
        if setup.serves_bot:
            self._serving = await stack.enter_async_context(Serving(url, setup))
            served = self._serving.bot
            await served.ready()
            url, addresses = served.public_url, served.addresses(allow_private=setup.config.allow_private)
        elif self._target.kind == "webhook" and setup.provider.has_webhook:
            webhook = Webhook(setup, url, addresses)
            await webhook.find_public_host(setup.new_call())
            url = webhook.url
        config = replace(setup.config, credentials=setup.provider.credentials)
        job = Job(config, self._target, url, addresses, self._plan.turns, setup.timeouts)
        is_here = setup.serves_bot or is_loopback(urlsplit(self._target.value).hostname or "")
        self._cores = free_cores(shares_machine=is_here)
        size = min(self._cores, math.ceil(self._plan.concurrency / CALLS_PER_WORKER))
        self._crew = await stack.enter_async_context(Crew(job, size, self._on_up))

    def _on_up(self, up: Up) -> None:
        self._ups[up.number] = up.at

    def _on_command(self, command: Command) -> None:
        """Carry out what a served bot asked of the provider's API."""
        if command.kind in ("hang-up", "transfer") and command.call_id in self._numbers:
            self._crew.hang_up(HangUp(self._numbers[command.call_id], by_bot=True))

    # Calls

    async def place(self) -> LoadReport:
        """Place all calls, and report."""
        began_at = time.monotonic()
        await self._place_together(self._plan.calls)
        return await self._report(_ALWAYS, began_at)

    async def look_for_knee(self) -> LoadReport:
        """Place more and more calls at once, and report the most for which the limits held."""
        began_at = time.monotonic()
        best: LoadReport | None = None

        async def measure(calls: int, again: bool) -> Step:
            nonlocal best
            step_at = time.monotonic()
            await self._place_together(calls)
            window = self._window()
            report = await self._report(window, step_at)
            step = judge_step(report, self._plan, calls, window, again=again)
            if step.outcome == "held" or best is None:
                best = report
            self._steps.append(step)
            if self._interrupted:
                raise asyncio.CancelledError
            return step

        try:
            knee = await find_knee(self._plan.calls, measure, self._watcher.on_step)
        except asyncio.CancelledError:
            if not self._interrupted or best is None:
                raise
            held = max((step.calls for step in self._steps if step.outcome == "held"), default=0)
            knee = Knee(held, True, "nothing", self._steps)
        assert best is not None
        return with_knee(best, knee, time.monotonic() - began_at, interrupted=self._interrupted)

    async def _place_together(self, calls: int) -> None:
        """Place so many calls; if it is cancelled, hang up those that are up."""
        self._calls = calls
        self._begun, self._numbers, self._ups = {}, {}, {}
        for member in self._crew.members:
            member.pulses.clear()
        telling = asyncio.create_task(self._tell())
        try:
            await self._begin_all(calls)
        except asyncio.CancelledError:
            self._interrupted = True
            self._crew.hang_up(HangUp())
            if self._begun:
                await asyncio.wait(self._begun.values(), timeout=self._setup.timeouts.close_s + 1)
        finally:
            telling.cancel()

    async def _begin_all(self, calls: int) -> None:
        room = asyncio.Semaphore(self._plan.concurrency)
        setup, began_at = self._setup, self._setup.clock.now()
        for index in range(calls):
            await setup.clock.sleep_until(began_at + index / self._plan.ramp_per_s)
            await room.acquire()
            call = setup.new_call()
            number = self._numbers[call.call_id] = index + 1
            if self._serving is not None:
                self._serving.api.add_call(call, self._on_command)
                self._serving.api.answer_call(call)
            ended = self._crew.begin(Begin(number, call, self._plan.duration_s(index, calls)))
            ended.add_done_callback(lambda _: room.release())
            self._begun[number] = ended
        await asyncio.gather(*self._begun.values())

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            ended = self._ended()
            shares = [member.pulses[-1].cpu_share for member in self._crew.members if member.pulses]
            up = len(self._ups) - sum(each.up_at is not None for each in ended)
            failed = sum(each.failure is not None for each in ended)
            told = Progress(self._calls, len(self._begun), up, len(ended), failed, max(shares, default=0.0))
            self._watcher.on_progress(told)

    def _ended(self) -> list[Ended]:
        return [each.result() for each in self._begun.values() if each.done()]

    def _window(self) -> tuple[float, float]:
        """Return when all calls were up together."""
        ended = [each for each in self._ended() if each.up_at is not None]
        if not ended:
            return _ALWAYS
        return max(each.up_at or 0.0 for each in ended), min(each.ended_at for each in ended)

    # After them

    async def _report(self, window: tuple[float, float], began_at: float) -> LoadReport:
        duration_s = time.monotonic() - began_at
        hearings = (await self._crew.read(window)).hearings
        outcome = Outcome(
            provider=self._setup.provider.name,
            target=self._setup.config.target,
            begun=len(self._begun),
            ended=self._ended(),
            hearings=hearings,
            interrupted=self._interrupted,
            duration_s=duration_s,
            client=self._client(hearings),
        )
        # In a thread, because it takes a while for many calls.
        return await asyncio.to_thread(judge, outcome, self._plan)

    def _client(self, hearings: Mapping[int, Hearing]) -> Client:
        """Return how the callers' own machine fared."""
        late_ms = np.concatenate([each.late_ms for each in hearings.values()] or [np.zeros(0)])
        pulses = [pulse for member in self._crew.members for pulse in member.pulses if pulse.calls]
        shares = [max((pulse.cpu_share for pulse in member.pulses), default=0.0) for member in self._crew.members]
        playable = None
        most = max((pulse.calls for pulse in pulses), default=0)
        if most >= LEAST_CALLS:
            # Not the largest: of a short run, that is how calls are set up.
            share = median(pulse.cpu_share for pulse in pulses if pulse.calls >= 0.9 * most)
            playable = int(self._cores * BUSY_SHARE * most / max(share, 0.01))
        return Client(Figures.of(late_ms, 2), [round(share, 2) for share in shares], playable)
