"""
Every setting, and the one place that reads the environment, ``.env`` and ``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Verify = Literal["auto", "enforce", "off"]
StreamAuth = Literal["token", "none"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """
    How a bot is served.

    Attributes:
        bot: ``file.py[:func]``, ``pkg.module[:func]`` or a folder.
        transport: A provider's name; ``None`` serves every telephony provider.
        proxy: The public ``host[:port]`` in front of this server, without a scheme.
        tunnel: The program that makes a public address, or ``None``.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        max_calls: How many calls at once; ``None`` for no limit.
        parameters: The user's parameters, handed to every call's bot.
        verify: Whether webhooks must be signed: where the secret is known, always, or never.
        stream_auth: Whether a stream on a public address needs a one-time token.
        record: The folder for recordings, or ``None``.
        drain_timeout_s: How long running calls may go on after the first SIGTERM.
        log_level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        credentials: The providers' credentials, by environment variable name.
        lead_ms: How far ahead of real time audio may be sent, so that the provider's buffer never runs dry.
        handshake_timeout_s: How long a connected caller may take to start its stream.
        playout_timeout_s: How long the end of a call waits for the last audio to be played.
        send_timeout_s: How long one message may wait for a caller that does not read.
        bot_exit_timeout_s: How long a bot may go on working after its call has ended.
        message_limit: The largest WebSocket message and webhook body, in bytes.
    """

    bot: str = "bot.py"
    transport: str | None = None
    proxy: str | None = None
    tunnel: Literal["ngrok"] | None = None
    host: str = "localhost"
    port: int = 7860
    max_calls: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    verify: Verify = "auto"
    stream_auth: StreamAuth = "token"
    record: Path | None = None
    drain_timeout_s: float = 600.0
    log_level: str = "INFO"
    credentials: Mapping[str, str] = field(default_factory=dict)
    lead_ms: int = 100
    handshake_timeout_s: float = 10.0
    playout_timeout_s: float = 2.0
    send_timeout_s: float = 10.0
    bot_exit_timeout_s: float = 30.0
    message_limit: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class DialConfig:
    """
    How a test call is placed.

    Attributes:
        target: A webhook's ``http(s)`` URL, a stream's ``ws(s)`` URL, or a bot as in :class:`RunConfig`.
        transport: The provider to play.
        audio: WAV files, one for each of the caller's turns; empty for the built-in question.
        dtmf: Digits to press after the audio; ``w`` pauses half a second.
        from_number: Who rings.
        to_number: Who is rung.
        parameters: Custom parameters of the stream (for a stream URL), or of the served bot.
        duration_s: Stay on the line this long; ``None`` hangs up when the script is done.
        listen_s: How long to let the bot speak first before the caller does.
        response_timeout_s: How long to wait for the bot's answer to a turn.
        record: The stereo WAV file to write (caller left, bot right), or ``None``.
        force_ws: Dial ``ws://`` where the answer document says ``wss://``.
        method: The webhook's method.
        as_json: Print the report as one JSON object on stdout.
        credentials: The providers' credentials, by environment variable name.
    """

    target: str = "http://localhost:7860/"
    transport: str = "twilio"
    audio: tuple[Path, ...] = ()
    dtmf: str = ""
    from_number: str = "+15550100001"
    to_number: str = "+15550100002"
    parameters: Mapping[str, str] = field(default_factory=dict)
    duration_s: float | None = None
    listen_s: float = 1.0
    response_timeout_s: float = 10.0
    record: Path | None = None
    force_ws: bool = False
    method: Literal["GET", "POST"] = "POST"
    as_json: bool = False
    credentials: Mapping[str, str] = field(default_factory=dict)
