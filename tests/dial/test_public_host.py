"""A server with a public host, dialled by a local name on its own machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.process import server_process
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.providers import PROVIDERS, load_provider

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")


def call(tmp_path: Path, url: str, provider: str, credentials: dict[str, str]) -> tuple[CallReport, list[str]]:
    clip = tmp_path / "clip.wav"
    write_wav(clip, [speech_like(300, 8000)], 8000)
    events: list[TimelineEvent] = []
    config = DialConfig(target=url, transport=provider, audio=(clip,), listen_s=0.0, credentials=credentials)
    report = asyncio.run(dial(config, on_event=events.append))
    return report, [event.text for event in events]


@pytest.mark.parametrize(("provider", "signed"), [*((name, True) for name in PROVIDERS), ("twilio", False)])
def test_its_public_host_is_dialled_locally(tmp_path: Path, provider: str, signed: bool) -> None:
    """The URL that is signed is the public one; nothing of the call leaves the machine."""
    carriers, bots = load_provider(provider).test_credentials(b"s" * 32) if signed else ({}, {})
    unverified = () if signed else ("--verify", "off")
    with server_process(tmp_path, ECHO, "-t", provider, "-x", "my.domain.invalid", *unverified, **bots) as server:
        report, told = call(tmp_path, server.url, provider, dict(carriers))
        assert report.failure is None, told
        assert told.count("my.domain.invalid stands for this server: it is dialled locally") == 1
        # A server that took the local name's signature would take one for any; Telnyx's covers no URL.
        assert ("webhook refused (403)" in server.log()) == (bool(carriers) and provider != "telnyx")


def test_only_a_program_on_this_machine_is_told(tmp_path: Path) -> None:
    with server_process(tmp_path, ECHO, "-t", "twilio", "-x", "my.domain.invalid", "--verify", "off") as server:
        fields = {"CallSid": "CA" + "0" * 32, "AccountSid": "AC" + "0" * 32}

        def told(**headers: str) -> str | None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.post(server.url, data=fields, headers=named).headers.get("x-wsvoice-public-host")

        assert told() == "my.domain.invalid"
        assert told(Host="my.domain.invalid") is None
        assert told(X_Forwarded_For="198.51.100.1") is None
        assert told(Origin="https://evil.example") is None
