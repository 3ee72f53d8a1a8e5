"""What a check-up is about: a bot with its settings, and the server that already runs for it, if one does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.config import RunConfig, find_from_number, parse_number, state_folder
from wsvoice.doctor.network import Network
from wsvoice.errors import ConfigError, HttpError
from wsvoice.phone.runs import running_servers
from wsvoice.providers import PROVIDERS, load_account, load_company
from wsvoice.providers.account import Account
from wsvoice.providers.base import HttpRequest

#: How long a server on this machine may take to say how it is, in seconds; a bot may block it for a moment.
LOCAL_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class LocalServer:
    """
    A server of wsvoice's on this machine.

    Attributes:
        url: Where this machine reaches it, with a slash at the end.
        providers: The providers that it serves; none serves plain clients.
        public_host: Its public host, as far as it knows one.
        server_id: Which one it is.
        is_draining: Whether it takes no new calls.
    """

    url: str
    providers: Sequence[str] = ()
    public_host: str = ""
    server_id: str = ""
    is_draining: bool = False


@dataclass(slots=True)
class LocalPort:
    """
    What answers where ``wsvoice run`` would listen.

    Attributes:
        url: Its address on this machine.
        server: The server of wsvoice's; ``None`` if it is none, or nothing listens.
        problem: Why it did not say how it is; empty if it did.
        is_free: Whether nothing listens.
    """

    url: str
    server: LocalServer | None = None
    problem: str = ""
    is_free: bool = False


@dataclass
class Subject:
    """
    What is looked at.

    Attributes:
        config: How ``wsvoice run`` would serve the bot.
        environ: The environment, and below it what ``.env`` says.
        cwd: The bot's folder.
        number: The telephone number that was named; empty for those of the environment.
        local: What answers on this machine; set by :meth:`find_server`.
        network: The way to public addresses.
        now: Unix time in seconds.
        account_of: Returns the account of a provider.
    """

    config: RunConfig
    environ: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = field(default_factory=Path.cwd)
    number: str = ""
    local: LocalPort = field(default_factory=lambda: LocalPort(""))
    network: Network = field(default_factory=Network)
    now: Callable[[], float] = time.time
    account_of: Callable[[str, Mapping[str, str]], Account] = load_account

    @cached_property
    def providers(self) -> tuple[str, ...]:
        """The providers that this is about: the chosen one, or those of whom credentials are set."""
        if self.config.transport is not None:
            return (self.config.transport,) if self.config.transport in PROVIDERS else ()
        return tuple(name for name in PROVIDERS if self._has_credentials(name))

    def _has_credentials(self, name: str) -> bool:
        # Later names may be settings, such as a region, which alone make nobody a customer.
        secrets = {*load_company(name).credential_names[:1], *self.account_of(name, {}).needed}
        return any(self.config.credentials.get(each) for each in secrets)

    def account(self, name: str) -> Account:
        """Return the account of a provider; a :exc:`ConfigError` is raised if one of its settings is wrong."""
        return self.account_of(name, self.config.credentials)

    def numbers(self) -> dict[str, str]:
        """Return the telephone number of each provider that one is known of; none if it is not clear whose it is."""
        if self.number:
            return dict.fromkeys(self.providers, self.number) if len(self.providers) == 1 else {}
        named = {name: find_from_number(name, self.environ, {}) for name in self.providers}
        return {name: _read_number(*found) for name, found in named.items() if found is not None}

    @property
    def server(self) -> LocalServer | None:
        """The server that runs on this machine."""
        return self.local.server

    @property
    def public_url(self) -> str:
        """The public address, without a slash at its end: the one that was given, or that of the running server."""
        if self.config.public_url is not None:
            return self.config.public_url
        return f"https://{self.server.public_host}" if self.server and self.server.public_host else ""

    @property
    def public_host(self) -> str:
        """The name of the public host, without its port."""
        return urlsplit(self.public_url).hostname or ""

    def served(self) -> list[str]:
        """Return the providers whose webhooks are looked at."""
        if self.server is None:
            return list(self.providers)
        return [name for name in self.server.providers if not self.providers or name in self.providers]

    def webhook_path(self, name: str) -> str:
        """Return the path of a provider's webhook, as ``wsvoice run`` names it."""
        alone = len(self.server.providers) == 1 if self.server else self.config.transport is not None
        return "/" if alone else f"/{name}"

    def webhook_url(self, name: str) -> str:
        """Return the webhook's URL as a provider would be told it; empty where nothing is known to serve it."""
        base = self.public_url or (self.server.url.rstrip("/") if self.server else "")
        return f"{base}{self.webhook_path(name)}" if base else ""

    @property
    def state(self) -> Path:
        """The folder for what outlives a run."""
        return state_folder(self.environ)

    async def find_server(self) -> None:
        """Look for a running server: where this one would listen, else where others say that they do."""
        host = "localhost" if self.config.host in ("0.0.0.0", "::") else self.config.host
        host = f"[{host}]" if ":" in host else host
        self.local = await look_at_port(f"http://{host}:{self.config.port}/")
        if self.local.is_free:
            told = [each.url for each in running_servers(self.state) if each.key]
            found = await asyncio.gather(*map(look_at_port, told))
            self.local = next((each for each in found if each.server is not None), self.local)


def _read_number(written: str, variable: str) -> str:
    """Return a number as `wsvoice dial` reads it; one that is none stays as it is, which no account has."""
    try:
        return parse_number(written, variable)
    except ConfigError:
        return written


async def look_at_port(url: str) -> LocalPort:
    """Return what answers at a local `url`."""
    try:
        health = await http.send(HttpRequest("GET", f"{url}readyz"), timeout_s=LOCAL_TIMEOUT_S)
    except HttpError as error:
        return LocalPort(url, problem=error.message, is_free=error.kind == "refused")
    named = health.headers.get(http.PROVIDERS_HEADER)
    if named is None and http.SERVER_HEADER not in health.headers:
        return LocalPort(url, problem=f"it answers {health.status} to GET /readyz, and wsvoice answers otherwise")
    server = LocalServer(
        url,
        tuple(each for each in (named or "").split(",") if each in PROVIDERS),
        health.headers.get(http.PUBLIC_HOST_HEADER, ""),
        health.headers.get(http.SERVER_HEADER, ""),
        health.status == 503,
    )
    return LocalPort(url, server)
