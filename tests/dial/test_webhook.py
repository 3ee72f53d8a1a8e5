"""A server with a public host, dialled by a local name on its own machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.process import ServerProcess, server_process
from tests.providers.companies import load_provider
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.providers import PROVIDERS

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
SEED = b"s" * 32
ANNOUNCED = [name for name in PROVIDERS if load_provider(name).has_webhook]
#: Whose signatures cover no URL.
COVERING_NO_URL = {"telnyx", "vonage"}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serve every provider, with secrets."""
    environ: dict[str, str] = {}
    for name in PROVIDERS:
        environ |= load_provider(name).test_credentials(SEED)[1]
    with server_process(tmp_path_factory.mktemp("signed"), ECHO, "-x", "my.domain.invalid", **environ) as process:
        yield process


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serve one provider, without secrets."""
    folder = tmp_path_factory.mktemp("unsigned")
    with server_process(folder, ECHO, "-t", "twilio", "-x", "my.domain.invalid", "--verify", "off") as process:
        yield process


@pytest.fixture(scope="module")
def unsigning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serve the provider that signs nothing, whose calls a public server only takes where it is named."""
    folder = tmp_path_factory.mktemp("unsigning")
    with server_process(folder, ECHO, "-t", "exotel", "-x", "my.domain.invalid") as process:
        yield process


def call(tmp_path: Path, url: str, provider: str, credentials: dict[str, str]) -> tuple[CallReport, list[str]]:
    clip = tmp_path / "clip.wav"
    write_wav(clip, [speech_like(300, 8000)], 8000)
    events: list[TimelineEvent] = []
    config = DialConfig(target=url, transport=provider, audio=(clip,), listen_s=0.0, credentials=credentials)
    report = asyncio.run(dial(config, on_event=events.append))
    return report, [event.text for event in events]


@pytest.mark.parametrize(("provider", "secrets"), [*((name, True) for name in ANNOUNCED), ("twilio", False)])
def test_its_public_host_is_dialled_locally(
    tmp_path: Path, request: pytest.FixtureRequest, provider: str, secrets: bool
) -> None:
    """The URL that is signed is the public one; nothing of the call leaves the machine."""
    all_at_once = secrets and load_provider(provider).signs
    # Only the server that is dialled is started.
    name = "signed" if all_at_once else "unsigning" if secrets else "unsigned"
    server: ServerProcess = request.getfixturevalue(name)
    url = f"{server.url}{provider}" if all_at_once else server.url
    logged = len(server.log())
    carriers = load_provider(provider).test_credentials(SEED)[0] if secrets else {}
    report, told = call(tmp_path, url, provider, dict(carriers))
    assert report.failure is None, told
    assert told.count("my.domain.invalid is this server; calling it locally") == 1
    # The caller asked for the name before it signed: the server has nothing to complain of.
    assert "refused" not in server.log()[logged:]
    if carriers and load_provider(provider).covers_body and provider not in COVERING_NO_URL:
        # A server that took the local name's signature would take one for any; passwords cover no URL either.
        owner = load_provider(provider, dict(carriers))
        numbers = {"from_number": "+15550100001", "to_number": "+15550100002"}
        called = owner.new_call(**numbers, parameters={}, seed=SEED)
        now = time.time()
        request = owner.sign(owner.webhook(called, url, method="POST", now=now), now=now)
        sent = httpx.post(url, headers=dict(request.headers), content=request.body)
        assert sent.status_code == 403


def test_a_server_of_another_providers_says_so(tmp_path: Path, unsigned: ServerProcess) -> None:
    report, _ = call(tmp_path, unsigned.url, "plivo", dict(load_provider("plivo").test_credentials(SEED)[0]))
    assert report.failure is not None
    assert report.failure.startswith("the server takes no calls from Plivo: 4")
    assert report.failure.endswith(" - dial with -t twilio")


def test_a_server_for_plain_clients_says_so(tmp_path: Path) -> None:
    with server_process(tmp_path, ECHO, "-t", "websocket") as server:
        report, _ = call(tmp_path, server.url, "twilio", {})
    assert report.failure == (
        "the server takes plain WebSocket clients, not telephone calls - start it with `wsvoice run bot.py -t twilio`"
    )


def test_only_a_program_on_this_machine_is_told(unsigned: ServerProcess) -> None:
    fields = {"CallSid": "CA" + "0" * 32, "AccountSid": "AC" + "0" * 32}

    def told(**headers: str) -> str | None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(unsigned.url, data=fields, headers=named).headers.get("x-wsvoice-public-host")

    assert told() == "my.domain.invalid"
    assert told(Host="my.domain.invalid") is None
    assert told(X_Forwarded_For="198.51.100.1") is None
    assert told(Origin="https://evil.example") is None
