"""A healthy set-up, in which each test plants one fault."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.company import CREDENTIALS, NUMBER, SmallAccount, SmallCompany, small_company
from tests.doctor.internet import HOST, Authority, Front, Loopback, listening
from tests.runner.conftest import serving
from tests.signals import tone
from wsvoice import http
from wsvoice.audio import write_wav
from wsvoice.config import RunConfig
from wsvoice.doctor.checks import checks
from wsvoice.doctor.checkup import Examined, Result, examine, ok
from wsvoice.doctor.subject import Subject

#: What takes a while and is the same in every test; faults of these are looked for by name.
SLOW = ("packages", "pipecat")
#: What the caller of a test call says.
WORD = tone(440, 340, 8000)


@dataclass
class Practice:
    """
    The healthy set-up.

    Attributes:
        company: The telephone company.
        front: What stands in front of the server.
        server: The bot's server.
        authority: Whose certificates this process takes.
        config: How the bot is served.
        folder: The bot's folder.
        environ: The environment.
        network: The internet.
        settings: What was found when the settings were read.
        start: Starts another server.
    """

    company: SmallCompany
    front: Front
    server: Any
    authority: Authority
    config: RunConfig
    folder: Path
    environ: dict[str, str]
    start: Callable[..., Any]
    network: Loopback = field(default_factory=Loopback)
    settings: Sequence[Result] = (ok("they can be used"),)
    number: str = NUMBER

    def change(self, **settings: Any) -> None:
        """Change how the bot is served."""
        self.config = replace(self.config, **settings)

    def examine(
        self,
        *,
        bot: str | None = None,
        with_call: bool = False,
        only: Sequence[str] = (),
        also: Sequence[str] = (),
        load_limit_s: float = 40.0,
    ) -> list[Examined]:
        """Return what the doctor finds: all that is quick, and the slow checks of `also`; or `only` some."""

        async def run() -> list[Examined]:
            subject = Subject(
                self.config if bot is None else replace(self.config, bot=bot),
                environ=self.environ,
                cwd=self.folder,
                number=self.number,
                network=self.network,
                account_of=lambda name, credentials: SmallAccount(credentials),
            )
            await subject.find_server()
            made = checks(subject, self.settings, bot=bot, with_call=with_call, load_limit_s=load_limit_s)
            left_out = set(SLOW) - set(also)
            return await examine(
                [each for each in made if each.name in (only or {each.name}) and each.name not in left_out]
            )

        return asyncio.run(run())


async def echo(runner_args: Any) -> None:
    """Stand in for a bot in servers that only answer webhooks."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """Return an authority whose certificates this process takes."""
    made = Authority(tmp_path_factory.mktemp("authority"), "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(made.file))
        http.tls_context.cache_clear()
        yield made
    http.tls_context.cache_clear()


@pytest.fixture(scope="module")
def front(authority: Authority) -> Iterator[Front]:
    """Return what stands in front of the server."""
    made = Front(authority.issue(HOST))
    made.heal()
    with listening(made.serve, made.tls) as made.port:
        yield made


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Return a function that serves a bot: ``start(bot, proxy="bot.example.com")``."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as begin:
        yield begin


@pytest.fixture(scope="module")
def server(front: Front, start: Callable[..., Any]) -> Any:
    """Return the server that serves Twilio in public."""
    return start(echo, transport="twilio", proxy=front.host, credentials=CREDENTIALS)


@pytest.fixture
def practice(
    front: Front,
    server: Any,
    start: Callable[..., Any],
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Practice]:
    """Return a set-up in which nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    front.heal()
    front.backend = port_of(server.url)
    with small_company() as company:
        company.numbers[NUMBER] = {"points_at": f"https://{front.host}/"}
        config = RunConfig(
            transport="twilio",
            proxy=front.host,
            host="127.0.0.1",
            port=port_of(server.url),
            credentials={**CREDENTIALS, "TWILIO_API_BASE_URL": company.url},
        )
        write_wav(tmp_path / "word.wav", [WORD], 8000)
        own = {"WSVOICE_STATE_DIR": str(tmp_path / "state"), "WSVOICE_DIAL_AUDIO": str(tmp_path / "word.wav")}
        environ = {**without_a_virtual_environment(), **own}
        yield Practice(company, front, server, authority, config, tmp_path, environ, start)


def without_a_virtual_environment() -> Mapping[str, str]:
    """Return this process's environment, in which another virtual environment than ours may be active."""
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}


def port_of(url: str) -> int:
    """Return the port of a server."""
    return int(url.rstrip("/").rpartition(":")[2])
