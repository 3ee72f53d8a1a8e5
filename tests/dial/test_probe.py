"""What the caller provokes, and finds out by it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.dial import fake_bots
from tests.dial.fake_bots import FakeBot, Line, fake_bot, http_answer, twiml
from tests.providers.companies import load_provider
from tests.signals import speech_like, tone
from tests.stalls import undisturbed
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.dial.checks import CHECKS, explain
from wsvoice.dial.probe import Probe
from wsvoice.dial.timeouts import Timeouts
from wsvoice.providers import PROVIDERS
from wsvoice.providers.base import Side
from wsvoice.providers.events import Audio, StreamStarted
from wsvoice.providers.hazards import JSON_HAZARDS

TOKEN = "wsvoice_test_auth_token_0000001"
WORDS = PCMU_8K.encode(tone(440, 300, 8000))
SPEECH = PCMU_8K.encode(tone(440, 2500, 8000))
QUICK = Timeouts(close_s=1.0, probe_quiet_s=0.2)

Found = list[tuple[str, str]]


# What is said


def media_of(provider: str) -> Callable[[], str | bytes]:
    """Return what makes the next media message of a stream that has started."""
    owner = load_provider(provider)
    call = owner.new_call(from_number="+15550100001", to_number="+15550100002", parameters={}, seed=bytes(32))
    stream = owner.stream(Side.CARRIER)
    wire = stream.format
    stream.send(StreamStarted(call.stream_id, call.call_id, call.account_id, format=wire))
    return lambda: stream.send(Audio(wire.silence(wire.bytes_for(20))))


def counter_of(message: dict[str, Any]) -> Any:
    """Return the number of a media message: its chunk's, where chunks are counted."""
    return message.get("media", {}).get("chunk", message.get("sequenceNumber"))


def say_all(provider: str) -> list[list[str | bytes]]:
    """Return what is sent while every hazard is said once, message by message, or several in the place of one."""
    media, known = media_of(provider), load_provider(provider).hazards
    probe = Probe(known, 0.1)
    sent: list[list[str | bytes]] = []
    now_ms = 0.0
    while not probe.is_over(now_ms):
        now_ms += 20
        assert now_ms < 3000
        if not probe.is_quiet(now_ms):
            sent.append(probe.media(media(), now_ms))
        else:
            assert now_ms <= 100
    assert probe.tried == ["no media for 0.1 s after the start", *(name for name, _ in known)]
    return sent


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_hazard_is_said_once(provider: str) -> None:
    odd = [messages for messages in say_all(provider) if len(messages) > 1]
    assert len(odd) == len(load_provider(provider).hazards) >= 4


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if load_provider(name).hazards is JSON_HAZARDS])
def test_hazards_are_said_in_the_providers_words(provider: str) -> None:
    sent = say_all(provider)
    assert [name for name, _ in JSON_HAZARDS] == [
        "an event that nobody knows",
        "a payload that is not base64",
        "a JSON array",
        "numbers as texts and texts as numbers",
        "media out of order",
    ]
    odd = [[json.loads(each) for each in messages] for messages in sent if len(messages) > 1]
    renamed, garbled, array, retyped, swapped = odd
    # What a message is called stands first in it.
    assert [next(iter(each.values())) for each in renamed] == ["media", "wsvoice-probe", "media"]
    assert garbled[1].get("media", garbled[1])["payload"] == "%%%"
    assert array[1] == [1, 2, 3]
    usual = counter_of(json.loads(sent[0][0]))
    assert all(type(counter_of(each)) is not type(usual) for each in retyped)
    first, second = (int(counter_of(each)) for each in swapped)
    assert first == second + 1
    # Whatever was done to the others, none is missing.
    said = [each for messages in sent for each in map(json.loads, messages)]
    chunks = {int(counter_of(each)) for each in said if isinstance(each, dict)}
    assert chunks == set(range(1, max(chunks) + 1))


# How bots take it


class Tried:
    """A probed call."""

    def __init__(self, report: CallReport, events: list[TimelineEvent], bot: FakeBot) -> None:
        self.report = report
        self.events = events
        self.bot = bot

    def found(self) -> Found:
        return [(found.id, found.level) for found in self.report.findings if found.id != "M2"]

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def message(self, id: str) -> str:
        return next(found.message for found in self.report.findings if found.id == id)


async def next_sound(line: Line) -> bytes:
    """Return the next piece of the caller's sound, and pass over whatever else comes."""
    while True:
        text = await line.socket.recv()
        try:
            message = json.loads(text)
            return base64.b64decode(message["media"]["payload"], validate=True)
        except (ValueError, KeyError, TypeError):
            continue


async def patient_echo(line: Line) -> None:
    while True:
        await line.say(await next_sound(line))


def speaker(*, clears: bool) -> fake_bots.Behaviour:
    """Answer at length, after 100 ms of silence; an interruption is heeded or not."""

    async def behaviour(line: Line) -> None:
        heard_sound, quiet, speaking = False, 0, False
        while True:
            sound = (await next_sound(line)).strip(b"\xff\x7f") != b""
            quiet = 0 if sound else quiet + 1
            heard_sound = heard_sound or sound
            if speaking and sound and clears:
                await line.clear()
                speaking = heard_sound = False
            if heard_sound and quiet == 5 and not speaking:
                speaking, heard_sound = True, False
                await line.say(SPEECH)

    return behaviour


async def late_speaker(line: Line) -> None:
    while (await next_sound(line)).strip(b"\xff\x7f") == b"":
        pass
    await asyncio.sleep(5.2)
    await line.say(WORDS)
    await fake_bots.silent(line)


async def deaf_after_a_broken_message(line: Line) -> None:
    """Say hello, and go on as pipecat's serializers do where a message is no object: not at all."""
    await line.say(WORDS)
    try:
        await fake_bots.echo(line)
    except ConnectionClosed:
        raise
    except (TypeError, KeyError):
        while True:
            await line.socket.recv()


async def wordless(line: Line) -> None:
    while True:
        await line.socket.recv()


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tried]:
    clip = tmp_path_factory.mktemp("probe") / "clip.wav"
    write_wav(clip, [speech_like(400, 8000, seed=3)], 8000)

    async def place(behaviour: fake_bots.Behaviour, served: dict[str, Any] | None = None, **settings: Any) -> Tried:
        events: list[TimelineEvent] = []
        async with fake_bot(behaviour, **(served or {})) as bot:
            config = DialConfig(
                **{
                    "target": bot.url,
                    "audio": (clip,),
                    "listen_s": 0.0,
                    "response_timeout_s": 3.0,
                    "probe": True,
                    **settings,
                }
            )
            return Tried(await dial(config, on_event=events.append, timeouts=QUICK), events, bot)

    def strict(bot: FakeBot, number: int) -> bytes:
        signed = "x-twilio-signature" in bot.webhooks[-1][2]
        return http_answer(twiml(bot.stream_url)) if signed else http_answer("no", "403 Forbidden")

    secret = {"credentials": {"TWILIO_AUTH_TOKEN": TOKEN}}

    async def place_all() -> dict[str, Tried]:
        wanted: dict[str, Awaitable[Tried]] = {
            "patient": place(patient_echo, {"webhook": strict}, **secret),
            "open": place(patient_echo, **secret),
            "crashes": place(fake_bots.echo),
            "deaf": place(deaf_after_a_broken_message, response_timeout_s=1.0),
            "silent": place(wordless, response_timeout_s=1.0),
            "polite": place(speaker(clears=True)),
            "rude": place(speaker(clears=False)),
            "late": place(late_speaker, probe=False, response_timeout_s=9.0),
        }
        return dict(zip(wanted, await asyncio.gather(*wanted.values()), strict=True))

    # A pause of the machine's is one in what a bot says, and is not to be judged.
    return undisturbed(lambda: asyncio.run(place_all()), stall_s=0.1, tries=3)


def test_a_bot_that_takes_everything_passes(tried: dict[str, Tried]) -> None:
    call = tried["patient"]
    assert (call.report.failure, call.found()) == (None, [])
    assert "the call survived no media for 0.2 s after the start" in call.told("note")
    assert "the call survived a JSON array" in call.told("note")
    # The caller begins with its words when all that is over.
    assert call.report.turns[0].caller_start_ms > 1000
    # Its answer is an echo, so there is nothing to interrupt.
    assert "the bot's last answer is too short to be interrupted" in call.told("note")
    assert call.report.untested == ("an interruption: the bot's last answer is too short to be interrupted",)
    assert call.report.to_lines()[-2] == f"not tested: {call.report.untested[0]}"
    signatures = ["x-twilio-signature" in headers for _, _, headers, _ in call.bot.webhooks]
    assert signatures == [True, False]


def test_a_server_that_takes_unsigned_webhooks_is_told(tried: dict[str, Tried]) -> None:
    call = tried["open"]
    assert call.found() == [("W2", "fail")]
    assert call.report.failure is not None
    assert call.report.failure.startswith("a webhook without a signature was answered with 200")


def test_without_a_secret_an_unsigned_webhook_proves_nothing(tried: dict[str, Tried]) -> None:
    assert len(tried["polite"].bot.webhooks) == 1
    assert any(text.startswith("no secret is known") for text in tried["polite"].told("note"))
    assert tried["polite"].report.untested == ("an unsigned webhook: no secret is known, or no answer came",)


def test_a_bot_that_goes_away_is_told_with_what_it_went_away_of(tried: dict[str, Tried]) -> None:
    call = tried["crashes"]
    assert ("S2", "fail") in call.found()
    assert call.message("S2") == "the bot ended the call after a JSON array"
    assert call.report.ended_by == "bot"


def test_a_bot_that_is_deaf_afterwards_is_told(tried: dict[str, Tried]) -> None:
    call = tried["deaf"]
    assert ("S2", "fail") in call.found()
    assert call.message("S2").startswith("the bot was not heard again after no media for 0.2 s")
    assert call.report.failure == "the bot did not answer turn 1 within 1 s"


def test_the_probe_is_not_blamed_for_a_bot_that_never_speaks(tried: dict[str, Tried]) -> None:
    call = tried["silent"]
    assert call.found() == []
    assert call.report.failure == "the bot never made a sound"
    assert "the bot never spoke, before the probe either: call it without --probe first" in call.told("note")


def test_a_bot_that_heeds_an_interruption_passes(tried: dict[str, Tried]) -> None:
    call = tried["polite"]
    assert (call.report.failure, call.found()) == (None, [])
    assert "the caller interrupts the bot" in call.told("note")
    assert call.report.clears == 1
    # The interruption is no turn of its own.
    assert len(call.report.turns) == 1


def test_a_bot_that_talks_on_is_told(tried: dict[str, Tried]) -> None:
    call = tried["rude"]
    assert (call.report.failure, call.found()) == (None, [("M3", "warn")])
    assert call.message("M3").startswith("the bot went on speaking for ")
    assert call.message("M3").endswith("it cleared nothing")
    assert call.report.verdict == "passed"


def test_a_slow_answer_is_told_without_being_provoked(tried: dict[str, Tried]) -> None:
    call = tried["late"]
    assert (call.report.failure, call.found()) == (None, [("S3", "warn")])
    assert call.report.turns[0].response_ms is not None
    assert call.report.turns[0].response_ms > 3000
    assert call.message("S3").endswith(" s to answer turn 1")


# What the findings mean


def test_every_finding_is_explained(tried: dict[str, Tried]) -> None:
    assert list(CHECKS) == ["W1", "W2", "W3", "W4", "W5", "W6", "S1", "S2", "S3", "M1", "M2", "M3", "M4", "E1", "E2"]
    assert [id for id, check in CHECKS.items() if check.provoked] == ["W2", "S2", "M3"]
    lines = list(explain(["M3", "W1", "M3"]))
    assert [line[:2] for line in lines] == ["W1", "  ", "M3", "  "]
    for call in tried.values():
        assert {found.id for found in call.report.findings} <= set(CHECKS)
    assert all("\n" not in each for check in CHECKS.values() for each in (check.holds, check.hint))
