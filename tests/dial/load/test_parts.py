"""The parts of many calls: frames, sounds and echoes, the search for the knee, what is refused, and the verdict."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from wsvoice.audio import PCMU_8K, resample
from wsvoice.config import DialConfig
from wsvoice.dial.load.echo import find_owner, match
from wsvoice.dial.load.judge import Outcome, judge, judge_step
from wsvoice.dial.load.knee import Knee, Step, find_knee
from wsvoice.dial.load.line import frame
from wsvoice.dial.load.listening import Hearing
from wsvoice.dial.load.orders import Ended
from wsvoice.dial.load.plan import allow_descriptors, plan_load
from wsvoice.dial.load.report import Client, Figures, LoadReport, group
from wsvoice.dial.load.sound import Speech, signal
from wsvoice.dial.script import Clip
from wsvoice.errors import UsageError

# Frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize("kind", [Opcode.TEXT, Opcode.BINARY])
def test_a_frame_is_what_another_library_reads(size: int, kind: Opcode) -> None:
    content = b"x" * size
    reader = StreamReader()
    reader.feed_data(frame(content.decode() if kind is Opcode.TEXT else content))
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=True)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    read = done.value.value
    assert (read.opcode, bytes(read.data), read.fin) == (kind, content, True)
    assert not reader.buffer


# Sounds


def speech(number: int, seconds: float = 3.0, **options: object) -> bytes:
    defaults: dict = {"turns": [], "sample_rate": 8000, "duration_s": seconds, "listen_s": 0.0, "response_s": 0.0}
    return b"".join(Speech(number, **{**defaults, **options}).seconds())


def test_every_caller_has_a_sound_of_its_own_that_any_process_can_make() -> None:
    assert speech(1) == speech(1)
    assert len(speech(1, 2.5)) == 2 * 20000
    own, other = signal(speech(1)), signal(speech(2))
    assert abs(np.dot(own, other)) < 0.1 * np.dot(own, own)
    spectrum = np.abs(np.fft.rfft(own)) ** 2
    freqs = np.fft.rfftfreq(len(own), 1 / 8000)
    assert spectrum[(freqs > 150) & (freqs < 3100)].sum() > 0.98 * spectrum.sum()


def test_turns_are_said_over_and_over_and_none_is_cut() -> None:
    clip = Clip("a", np.full(8000, 5000, "<i2").tobytes(), 8000)
    said = Speech(1, [clip], sample_rate=8000, duration_s=10.0, listen_s=1.0, response_s=2.0)
    assert said.spans == [(1000.0, 2000.0), (4000.0, 5000.0), (7000.0, 8000.0)]
    pcm = signal(b"".join(said.seconds()))
    assert len(pcm) == 80000
    assert pcm[8000:16000].min() == 5000
    assert not pcm[16000:32000].any()


def heard_as(pcm: bytes, delay: int) -> np.ndarray:
    return signal(bytes(2 * delay) + pcm)


ALL = np.iinfo(np.int64).max


@pytest.mark.parametrize("coded", [False, True])
def test_an_echo_is_found_with_its_delay_even_if_it_was_resampled(coded: bool) -> None:
    pcm = speech(3)
    came = pcm
    if coded:
        came = PCMU_8K.decode(PCMU_8K.encode(resample(resample(pcm, 8000, 24000), 24000, 8000)))
    heard = heard_as(came, 1234)
    found = match(signal(pcm), heard, np.minimum(np.arange(len(heard)), len(pcm) // 2), 8000)
    assert found.share > 0.95
    assert {lag for _, lag in found.own} <= {1233, 1234, 1235}


def test_a_delay_that_grows_is_followed() -> None:
    pcm = speech(3)
    heard = signal(bytes(1600) + pcm[:16000] + bytes(3200) + pcm[16000:])
    found = match(signal(pcm), heard, np.minimum(np.arange(len(heard)), len(pcm) // 2), 8000)
    assert sorted({lag for _, lag in found.own}) == [800, 2400]
    assert found.share == 1.0


def test_another_callers_sound_is_strange_and_its_owner_found() -> None:
    heard = heard_as(speech(5), 800)
    found = match(signal(speech(3)), heard, np.full(len(heard), 24000), 8000)
    assert found.share == 0.0
    begin = found.strange[3]
    piece = heard[begin : begin + found.size]
    at = (begin + found.size) / 8000
    callers = dict.fromkeys(range(1, 7), 0.0)
    assert find_owner(piece, at, callers, 8000, but=3) == 5
    assert find_owner(piece, at, callers, 8000, but=5) is None


# The knee


def find(most: int, takes: int, *, plays: int = 10_000, noise: tuple[int, ...] = ()) -> tuple[Knee, list[int]]:
    """Look for the knee of a server that takes so many, with a machine that plays so many; `noise` breaks once."""
    tried: list[int] = []

    async def measure(calls: int, again: bool) -> Step:
        tried.append(calls)
        if calls > plays:
            return Step(calls, "not-measured", "late", again=again)
        broke = calls > takes or (calls in noise and not again)
        return Step(calls, "broke" if broke else "held", "", again=again)

    told: list[Step] = []
    knee = asyncio.run(find_knee(most, measure, told.append))
    assert [step.calls for step in told] == tried
    assert knee.steps == told
    return knee, tried


@pytest.mark.parametrize("takes", [1, 2, 3, 4, 5, 6, 17, 57, 80, 81, 199, 333, 499])
def test_the_knee_is_found_within_three_calls_or_5_percent(takes: int) -> None:
    knee, tried = find(500, takes)
    assert not knee.at_least
    assert knee.limited_by == "server"
    assert 0 <= takes - knee.calls < max(4, 0.05 * takes)
    assert len(tried) < 25


def test_a_server_that_takes_all_is_not_asked_for_more() -> None:
    assert find(12, 100) == (Knee(12, True, "nothing", find(12, 100)[0].steps), [1, 5, 10, 12])


def test_a_step_that_broke_is_tried_once_more() -> None:
    knee, tried = find(40, 100, noise=(10,))
    assert tried == [1, 5, 10, 10, 20, 40]
    assert knee.calls == 40
    assert [step.again for step in knee.steps] == [False, False, False, True, False, False]


def test_what_this_machine_cannot_play_is_never_the_servers_limit() -> None:
    knee, _ = find(500, 10_000, plays=50)
    assert knee.at_least
    assert knee.limited_by == "this machine"
    assert 47 <= knee.calls <= 50
    # Below that the server's own limit is found.
    knee, _ = find(500, 30, plays=50)
    assert (knee.at_least, knee.limited_by) == (False, "server")
    assert find(500, 500, plays=0)[0] == replace(find(500, 500, plays=0)[0], calls=0, limited_by="this machine")


def test_a_server_that_takes_not_even_one_call() -> None:
    knee, tried = find(500, 0)
    assert tried == [1, 1]
    assert (knee.calls, knee.at_least) == (0, False)


# What is asked for

MANY = DialConfig(target="ws://127.0.0.1:1/", calls=10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": Path("a.wav")}, "--record is for one call"),
        ({"caller": "bot.py"}, "--caller is for one call"),
        ({"probe": True}, "--probe is for one call"),
        ({"dtmf": "1"}, "--dtmf is for one call"),
        ({"concurrency": 11}, "--concurrency 11 is more than there are calls"),
        ({"find_knee": True, "concurrency": 5}, "--find-knee tries how many"),
        ({"transport": "plivo", "quirks": {"silent": "yes"}}, "the quirk silent is for one call"),
        ({"transport": "telnyx", "quirks": {"webhook": "call-control"}}, "the quirk webhook is for one call"),
        ({"calls": 100, "duration_s": 3600.0}, "talk for 100 h together"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_hint(changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        plan_load(replace(MANY, **changes))
    assert caught.value.hint


def test_calls_last_until_all_are_up_unless_a_duration_is_given() -> None:
    plan = plan_load(replace(MANY, ramp_per_s=2.0))
    assert [plan.duration_s(index, 10) for index in (0, 9)] == [14.5, 10.0]
    plan = plan_load(replace(MANY, ramp_per_s=2.0, duration_s=3.0))
    assert [plan.duration_s(index, 10) for index in (0, 9)] == [3.0, 3.0]
    plan = plan_load(replace(MANY, concurrency=1))
    assert [plan.duration_s(index, 10) for index in (0, 9)] == [10.0, 10.0]
    plan = plan_load(replace(MANY, find_knee=True, duration_s=3.0, ramp_per_s=5.0))
    assert [plan.duration_s(index, 6) for index in (0, 5)] == [5.0, 4.0]
    assert plan.max_late_share == 0.01


def test_what_is_late_depends_on_how_long_a_message_is() -> None:
    assert plan_load(MANY).max_late_s == pytest.approx(0.06)
    assert plan_load(replace(MANY, transport="exotel")).max_late_s == pytest.approx(0.14)
    assert plan_load(replace(MANY, transport="exotel", max_late_s=0.2)).max_late_s == 0.2


def test_the_limit_of_open_files_is_raised_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    allow_descriptors(50)
    assert len(limits) == 1
    allow_descriptors(500)
    assert limits[-1] == (1100, 4096)
    with pytest.raises(
        UsageError, match="3000 calls at once need 6100 open files, and a process may have 4096"
    ) as caught:
        allow_descriptors(3000)
    assert caught.value.hint is not None
    assert "place at most 1998" in caught.value.hint


# The verdict


def ended(number: int, failure: str | None = None) -> Ended:
    return Ended(number, failure, 10.0, 5.0, up_at=1.0 + number / 10, ended_at=9.0)


def hearing(**changes: object) -> Hearing:
    usual = Hearing(
        first_audio_ms=30.0,
        received_audio_ms=8000.0,
        echo="exact",
        latency_ms=np.full(100, 25.0),
        jitter_ms=np.ones(100),
        late_ms=np.full(400, 0.5),
    )
    return replace(usual, **changes)


def report(hearings: dict[int, Hearing], *failures: Ended, late_ms: float = 0.5, **changes: object) -> LoadReport:
    calls = [*(ended(number) for number in hearings), *failures]
    client = Client(Figures(late_ms, late_ms, late_ms, late_ms), (0.4,), 300)
    outcome = Outcome("twilio", "t", len(calls), calls, hearings, False, 9.0, client)
    return judge(outcome, plan_load(replace(MANY, **changes)))


def test_figures_have_stable_names() -> None:
    content = json.loads(json.dumps(report({1: hearing(), 2: hearing()}).to_dict()))
    assert list(content) == [
        *("provider", "target", "verdict", "failure", "interrupted", "calls", "passed", "failed", "peak_calls"),
        *("duration_s", "echo", "crossed", "setup_ms", "webhook_ms", "connect_ms", "first_audio_ms", "response_ms"),
        *("latency_ms", "jitter_ms", "late_share", "late_shares", "max_late_ms", "underruns", "failures", "client"),
        "knee",
    ]
    assert content["setup_ms"] == {"p50": 45.0, "p90": 45.0, "p99": 45.0, "max": 45.0}
    assert content["latency_ms"]["p99"] == 25.0
    assert (content["verdict"], content["passed"], content["peak_calls"], content["echo"]) == ("passed", 2, 2, "exact")
    assert list(content["client"]) == ["late_ms", "cpu_shares", "playable_calls"]


def test_late_and_missing_echoes_count_and_may_fail_a_run() -> None:
    late = hearing(latency_ms=np.array([25.0] * 95 + [61.0] * 3), missing=2)
    assert report({1: late, 2: hearing()}).late_share == 0.025
    assert report({1: late, 2: hearing()}).verdict == "passed"
    judged = report({1: late, 2: hearing()}, max_late_share=0.01)
    assert (judged.verdict, judged.failure) == ("failed", "2.50% of the bot's audio came too late (limit 1.00%)")
    assert report({1: late, 2: hearing()}, max_late_share=0.03).verdict == "passed"


def test_of_a_bot_that_does_not_echo_gaps_are_late() -> None:
    own = hearing(echo="none", latency_ms=np.zeros(0), gap_ms=2000.0, underruns=4)
    judged = report({1: own})
    assert (judged.echo, judged.latency_ms, judged.late_share, judged.underruns) == ("none", None, 0.2, 4)


def test_a_late_client_reports_no_figure_and_blames_nobody_else() -> None:
    judged = report({1: hearing()}, ended(2, "the webhook failed: 500"), late_ms=20.0)
    assert judged.verdict == "not-measured"
    assert "this machine cannot play 2 calls at once" in (judged.failure or "")
    assert "about 300" in (judged.failure or "")
    figures = judged.to_dict()
    assert all(figures[name] is None for name in figures if name.endswith("_ms") and name != "max_late_ms")
    assert figures["late_share"] is None
    assert figures["failures"] == []
    assert not any("latency" in line or "500" in line for line in judged.to_lines())
    step = judge_step(judged, plan_load(replace(MANY, find_knee=True)), 2, (0.0, 9.0), again=False)
    assert step.outcome == "not-measured"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"first_audio_ms": None, "echo": "none"}, "the bot never made a sound"),
        ({"unanswered": 2}, "the bot did not answer turn 2"),
        ({"failure": "a media message has no streamSid"}, "a media message has no streamSid"),
        ({"echo": "none"}, "the caller heard something else than itself"),
    ],
)
def test_what_is_wrong_with_one_call_is_a_reason(changes: dict, reason: str) -> None:
    judged = report({1: hearing(), 2: hearing(), 3: hearing(**changes)})
    assert (judged.verdict, judged.failed) == ("failed", 1)
    assert judged.failures[0].reason.startswith(reason)
    assert judged.failures[0].calls == (3,)


def test_failures_that_differ_in_ids_only_are_one_reason() -> None:
    reasons = {
        1: "the stream at ws://host/ws/a1b2c3d4e5... did not open within 10 s",
        2: "the stream at ws://host/ws/99f2c3d4e5... did not open within 10 s",
        3: "the webhook refused the call: 403",
        4: "the webhook refused the call: 404",
        5: "the stream at ws://host/ws/77f2c3d4e5... did not open within 10 s",
    }
    assert [(each.count, each.calls) for each in group(reasons)] == [(3, (1, 2, 5)), (1, (3,)), (1, (4,))]


def test_a_step_holds_only_if_all_calls_were_up_and_in_time() -> None:
    plan = plan_load(replace(MANY, find_knee=True))
    good = report({1: hearing(), 2: hearing()}, find_knee=True)
    assert judge_step(good, plan, 2, (0.0, 5.0), again=False).outcome == "held"
    assert judge_step(good, plan, 2, (0.0, 1.0), again=False).outcome == "broke"
    late = report({1: hearing(missing=1), 2: hearing(missing=2)}, find_knee=True)
    step = judge_step(late, plan, 2, (0.0, 5.0), again=True)
    assert (step.outcome, step.again, step.late_share) == ("broke", True, pytest.approx(3 / 203, abs=1e-5))
    failed = report({1: hearing()}, ended(2, "the webhook failed: 503"), find_knee=True)
    assert "503" in judge_step(failed, plan, 2, (0.0, 5.0), again=False).reason
