"""A server with a public host, dialled by a local name on its own machine."""

from __future__ import annotations

import asyncio
import time
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
        assert told.count("my.domain.invalid is this server; calling it locally") == 1
        # The caller asked for the name before it signed: the server has nothing to complain of.
        assert "refused" not in server.log()
        if carriers and provider != "telnyx":
            # A server that took the local name's signature would take one for any; Telnyx's covers no URL.
            owner = load_provider(provider, dict(carriers))
            numbers = {"from_number": "+15550100001", "to_number": "+15550100002"}
            called = owner.new_call(**numbers, parameters={}, seed=b"s" * 32)
            now = time.time()
            request = owner.sign(owner.webhook(called, server.url, method="POST", quirks={}, now=now), now=now)
            sent = httpx.post(server.url, headers=dict(request.headers), content=request.body)
            assert sent.status_code == 403


def test_a_server_of_another_providers_says_so(tmp_path: Path) -> None:
    with server_process(tmp_path, ECHO, "-t", "plivo", "-x", "my.domain.invalid", "--verify", "off") as server:
        report, _ = call(tmp_path, server.url, "twilio", {"TWILIO_AUTH_TOKEN": "t" * 32})
    assert report.failure is not None
    assert report.failure.startswith("the server takes no calls of Twilio's: 4")
    assert report.failure.endswith(" - dial with -t plivo")


def test_a_server_for_plain_clients_says_so(tmp_path: Path) -> None:
    with server_process(tmp_path, ECHO, "-t", "websocket") as server:
        report, _ = call(tmp_path, server.url, "twilio", {})
    assert report.failure == (
        "the server takes plain WebSocket clients, and no telephone calls"
        " - start it with `wsvoice run bot.py -t twilio`"
    )


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
