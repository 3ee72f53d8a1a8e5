"""What can be known to be wrong before anything listens: settings, secrets, and folders for what is kept of calls."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from wsvoice import http
from wsvoice.config import METRICS_TOKEN, PLAIN_TRANSPORTS
from wsvoice.errors import ConfigError
from wsvoice.phone.numbers import account_for_numbers
from wsvoice.runner.auth import served_providers
from wsvoice.runner.fleet import Fleet, own_seals
from wsvoice.runner.switchboard import create_switchboard

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.config import RunConfig
    from wsvoice.providers.base import Server

#: The transports without an HTTP server.
_ALONE = ("websocket-server", "websocket-client")
#: How long the token for metrics has to be, in characters.
TOKEN_LENGTH = 16
#: The addresses that are all of this machine's.
_EVERY_ADDRESS = ("0.0.0.0", "::")


def check_settings(config: RunConfig) -> dict[str, Server]:
    """
    Return the providers that a server with these settings serves, by name; nobody is asked, and nothing is opened.

    Raises:
        ConfigError: If a setting or a secret is missing, does not go with another one, or cannot work here.
        ServerError: If a library that a setting needs is missing.
    """
    if config.transport == "websocket-client" and config.url is None:
        raise ConfigError("websocket-client needs the address of a server", hint="set `url`")
    _check_traces(config)
    if config.transport in _ALONE:
        return {}
    own_seals(config)
    _check_metrics_token(config.credentials.get(METRICS_TOKEN, ""))
    _check_addresses(config)
    if config.record is not None:
        check_folder(config.record, "--record")
    if config.number is not None:
        account = account_for_numbers(config.transport, config.credentials)
        if account.has_numbers:
            account.check_credentials()
    return {} if config.transport in PLAIN_TRANSPORTS else served_providers(config)


def _check_traces(config: RunConfig) -> None:
    if config.trace is not None:
        check_folder(config.trace, "--trace")
    elif config.redact is not None:
        raise ConfigError("--redact is about traces, and there are none", hint="add `--trace DIR`, or leave it out")


def rehearse(bot: LoadedBot, config: RunConfig) -> dict[str, Server]:
    """
    Do what a server does before it listens, and asks others, and return the providers that it would serve, by name.

    Raises:
        WsvoiceError: If it would not come to that.
    """
    providers = check_settings(config)
    if config.transport not in _ALONE:
        # It reads the message for those who are turned away, and warns of what will not work.
        create_switchboard(bot.function, config, providers, Fleet(own_seals(config))).tracing.close()
    return providers


def _check_metrics_token(token: str) -> None:
    """Raise :exc:`ConfigError` if the token for metrics, which anybody may try at the public port, could be guessed."""
    # The token itself is never shown.
    if token and len(token) < TOKEN_LENGTH:
        raise ConfigError(
            f"{METRICS_TOKEN} needs {TOKEN_LENGTH} characters at least, and has {len(token)}",
            hint="make one with `openssl rand -hex 16`; for a port of its own, which needs none, use --metrics-port",
        )


def _check_addresses(config: RunConfig) -> None:
    """Raise :exc:`ConfigError` if what the server listens on cannot go together."""
    if config.tunnel is not None and config.host not in _EVERY_ADDRESS and not http.is_loopback(config.host):
        raise ConfigError(
            f"a tunnel leads to localhost, where a server with --host {config.host} does not listen",
            hint="leave --host out",
        )
    hosts = (config.host, config.metrics_host)
    shared = hosts[0] == hosts[1] or any(each in _EVERY_ADDRESS for each in hosts)
    if config.port and config.metrics_port == config.port and shared:
        raise ConfigError(
            f"--metrics-port {config.port} is the port that calls come to",
            hint=f"use another one, such as `--metrics-port {9090 if config.port != 9090 else 9091}`",
        )


def check_folder(folder: Path, option: str = "--record") -> None:
    """
    Make sure that calls can be written to `folder`, which is made with the first one if it is not there.

    Raises:
        ConfigError: If they cannot.
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
    try:
        # A disk that is mounted to be read only, or full, does not tell before.
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        problem = f"{option} {folder} cannot be written to: {error.strerror} ({there})"
        raise ConfigError(problem, hint=f"name a folder that this user may write to, or leave {option} out") from None
