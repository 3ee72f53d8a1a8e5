"""Traces of calls that never were: written by the writer of real ones, at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.signals import speech_like
from wsvoice.call import Call
from wsvoice.trace import Header, LogLine, Trace, TraceEvent, TraceWriter, read_trace

RATE = 8000
#: One turn in so many seconds: the caller speaks, waits, hears the bot, and thinks.
TURN_S = 10.0
SAID_S, ANSWER_S = 2.0, 4.0
_FRAME_S = 0.02


def wait_s(turn: int) -> float:
    """How long the caller of :func:`make_call` waits for the answer in a turn."""
    return 0.4 + turn * 7 % 10 / 10


def make_call(
    folder: Path,
    seconds: float = 25.0,
    *,
    side: str = "caller",
    parameters: Mapping[str, str] | None = None,
    number: str = "+15551230001",
    report: Mapping[str, Any] | None = None,
    log: Sequence[str] = (),
    faster_s: float = 0.0,
    wire: bool = True,
    ends: bool = True,
) -> Trace:
    """Write the trace of a conversation, and return it: a turn in ten seconds, and one message each way in 20 ms."""
    call = Call("twilio", "CA" + "1" * 32, "MZ" + "2" * 32, from_number=number, to_number="+15551230002")
    call = Call(**{**{name: getattr(call, name) for name in call.__slots__}, "parameters": parameters or {}})
    versions = {"wsvoice": "0.1.0", "pipecat": "1.14.0"}
    writer = TraceWriter(folder, Header(side, call, 1_763_800_000.25, RATE, "bot.py", versions))  # type: ignore[arg-type]
    writer.wire(
        -0.2, "in", "webhook", "CallSid=CA1&From=%2B1555", {"method": "POST", "url": "https://bot.example.com/"}
    )
    writer.wire(-0.19, "out", "answer", "<?xml version='1.0'?><Response><Connect/></Response>", {"status": 200})
    turns = [] if seconds < SAID_S else list(range(max(1, int((seconds + TURN_S - 8) // TURN_S))))
    _write_tracks(writer, seconds, turns, faster_s)
    if wire:
        _write_wire(writer, seconds)
    for turn in turns:
        _write_events(writer, turn, faster_s)
    for n, message in enumerate(log):
        writer.log(LogLine(0.5 + n, "ERROR" if n % 2 else "INFO", "bot", message))
    if ends:
        writer.wire(seconds, "in", "close", "", {"code": 1000})
        writer.close({"t": seconds, "samples": round(seconds * RATE), "by": "caller"}, report or {"verdict": "passed"})
    else:
        writer.flush()
        writer.abandon()
    return read_trace(writer.path)


def _write_tracks(writer: TraceWriter, seconds: float, turns: Sequence[int], faster_s: float) -> None:
    caller, bot = (np.zeros(round(seconds * RATE), "<i2") for _ in range(2))
    said, answer = (
        np.frombuffer(speech_like(ms * 1000, RATE, seed), "<i2") for ms, seed in ((SAID_S, 1), (ANSWER_S, 2))
    )
    for turn in turns:
        for track, sound, at_s in (
            (caller, said, turn * TURN_S + 1),
            (bot, answer, turn * TURN_S + 1 + SAID_S + wait_s(turn) - faster_s),
        ):
            part = track[round(at_s * RATE) :][: len(sound)]
            part[:] = sound[: len(part)]
    writer.caller(caller.tobytes())
    writer.bot(bot.tobytes())


def _write_wire(writer: TraceWriter, seconds: float) -> None:
    rng = np.random.default_rng(1)
    payloads = [base64.b64encode(rng.bytes(160)).decode() for _ in range(64)]
    for n in range(round(seconds / _FRAME_S)):
        media = {"track": "inbound", "chunk": str(n + 1), "timestamp": str(n * 20), "payload": payloads[n % 64]}
        message = {"event": "media", "sequenceNumber": str(n + 2), "media": media, "streamSid": "MZ" + "2" * 32}
        writer.audio_messages([n * _FRAME_S], ["in"], [json.dumps(message)])
        said = {"event": "media", "streamSid": "MZ" + "2" * 32, "media": {"payload": payloads[-n % 64]}}
        writer.audio_messages([n * _FRAME_S + 0.004], ["out"], [json.dumps(said)])
        if n % 500 == 0:
            writer.flush()


def _write_events(writer: TraceWriter, turn: int, faster_s: float) -> None:
    start = turn * TURN_S + 1
    wait = wait_s(turn) - faster_s
    bot = start + SAID_S + wait
    mark = {"event": "mark", "streamSid": "MZ" + "2" * 32, "mark": {"name": f"sentence-{turn}"}}
    writer.event(TraceEvent(start, "caller-speaks", "the caller speaks"))
    writer.event(TraceEvent(start + SAID_S, "caller-silent", "the caller is silent"))
    writer.event(TraceEvent(bot, "wait", "the bot answers", {"ms": wait * 1000}))
    for n in range(40):
        writer.event(TraceEvent(bot + n / 10, "buffer", "", {"ms": max(0.0, 900 - abs(n - 15) * 60)}))
    writer.wire(bot + 1, "out", "text", json.dumps(mark))
    writer.event(TraceEvent(bot + 2, "mark", f"mark sentence-{turn} is reached"))
    writer.log(LogLine(bot, "DEBUG", "pipecat.services.llm", f"the model has answered turn {turn} in {wait:.2f} s"))
    if turn % 3 == 1:
        writer.event(TraceEvent(bot + 3, "digit", "the caller presses 5"))
    if turn % 4 == 1:
        writer.event(TraceEvent(bot + 3.5, "interruption", "the caller speaks while the bot's sound plays"))
        writer.event(TraceEvent(bot + 3.6, "clear", "the bot clears 420 ms", {"ms": 420}))
        writer.log(LogLine(bot + 3.6, "WARNING", "bot", "interrupted"))
    if turn % 5 == 2:
        writer.event(TraceEvent(bot + 1.5, "finding", "warn M3: audio came too late, and the bot's sound broke off"))
    writer.flush()
