"""Every check, in the order in which they are told: what others build on comes first."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from wsvoice.doctor.accounts import look_at_account, look_at_left_numbers, look_at_number
from wsvoice.doctor.bot import END_LIMIT_S, LOAD_LIMIT_S, START_LIMIT_S, look_at_bot
from wsvoice.doctor.checkup import Check, Result, fail, skipped
from wsvoice.doctor.clock import look_at_clock
from wsvoice.doctor.machine import look_at_limits, look_at_python, look_at_tunnel_program
from wsvoice.doctor.packages import look_at_packages, look_at_pipecat
from wsvoice.doctor.public_address import look_at_address, look_at_certificate, look_at_name, look_at_upgrade
from wsvoice.doctor.round_trip import CALL_LIMIT_S, look_at_audio
from wsvoice.doctor.server import look_at_server
from wsvoice.doctor.subject import Subject
from wsvoice.doctor.webhook import look_at_webhook
from wsvoice.providers import PROVIDERS, load_simulator

#: How long a webhook's check may take, in seconds: it tries which URL a server checks signatures for.
_WEBHOOK_LIMIT_S = 60.0
#: How long what starts and stops a process may take beyond its own limits, in seconds.
_PROCESS_S = 15.0


def checks(
    subject: Subject,
    settings: Sequence[Result],
    *,
    bot: str | None,
    with_call: bool = True,
    load_limit_s: float = LOAD_LIMIT_S,
) -> list[Check]:
    """
    Return every check.

    Args:
        subject: What is looked at.
        settings: What was found when its settings were read.
        bot: The bot; ``None`` if there is none to be loaded.
        with_call: Whether a test call is placed.
        load_limit_s: How long the bot may take to load.
    """
    found = _of_this_machine(subject, settings)
    if bot is not None:
        limit_s = START_LIMIT_S + load_limit_s + END_LIMIT_S + _PROCESS_S
        look = partial(look_at_bot, subject, limit_s=load_limit_s)
        found.append(Check("bot", "whether the bot loads", look, limit_s=limit_s))
    found += [
        *_of_accounts(subject),
        Check("left numbers", "numbers that runs have left pointed", partial(look_at_left_numbers, subject)),
        Check("clock", "this machine's clock, against the providers'", partial(look_at_clock, subject)),
        Check("server", "the port, and the server that runs there", partial(look_at_server, subject)),
        Check("tunnel", "what --tunnel needs", _in_thread(partial(_look_at_tunnel, subject))),
        *_public(subject),
        *_of_webhooks(subject),
    ]
    if with_call:
        look = partial(look_at_audio, subject, bot)
        needs = ("pipecat", "bot", "server") if bot is None else ("pipecat", "bot")
        found.append(Check("audio", "a test call: audio there and back", look, needs=needs, limit_s=CALL_LIMIT_S))
    return found


def _of_this_machine(subject: Subject, settings: Sequence[Result]) -> list[Check]:
    """Return the checks of what is installed and set here."""
    return [
        Check("python", "the interpreter and its environment", _at_once(look_at_python, subject.environ)),
        Check("packages", "what is installed, against what is needed", _in_thread(look_at_packages)),
        Check("pipecat", "pipecat's version, and what wsvoice relies on in it", _in_thread(look_at_pipecat)),
        Check("limits", "open files and processors", _at_once(look_at_limits)),
        Check("settings", "flags, environment, .env and pyproject.toml", _at_once(lambda: settings)),
    ]


def _of_accounts(subject: Subject) -> list[Check]:
    """Return the checks of the providers' accounts, and of their numbers."""
    found = []
    for name in subject.providers:
        title, look = PROVIDERS[name], partial(look_at_account, subject, name)
        found.append(Check(f"{name} account", f"whether {title} takes the credentials", look))
    for name, number in subject.numbers().items():
        look = partial(look_at_number, subject, name, number)
        found.append(Check(f"{name} number", f"where calls to {number} go", look, needs=(f"{name} account",)))
    if subject.number and not subject.numbers():
        unclear = fail(f"it is not clear whose number {subject.number} is", "name its provider, as in `-t twilio`")
        found.append(Check("number", f"where calls to {subject.number} go", _at_once(lambda: [unclear])))
    return found


def _of_webhooks(subject: Subject) -> list[Check]:
    """Return the check of each provider's webhook."""
    found = []
    for name in subject.served():
        if load_simulator(name).has_webhook:
            look = partial(look_at_webhook, subject, name)
            title = PROVIDERS[name]
            found.append(
                Check(
                    f"{name} webhook",
                    f"a webhook as {title} signs it, and its answer",
                    look,
                    needs=("public address", "server"),
                    limit_s=_WEBHOOK_LIMIT_S,
                )
            )
    return found


def _public(subject: Subject) -> list[Check]:
    """Return the checks of the public address, each of which builds on the one before."""
    if not subject.public_url:
        nothing = skipped("none is known: -x DOMAIN names one, and so does a server that runs here with one")
        return [Check("public address", "who answers there, from outside", _at_once(lambda: [nothing]))]
    return [
        Check("public name", "the public host's addresses", partial(look_at_name, subject)),
        Check("certificate", "the public host's TLS", partial(look_at_certificate, subject), needs=("public name",)),
        Check(
            "public address",
            "who answers there, from outside",
            partial(look_at_address, subject),
            needs=("certificate",),
        ),
        Check(
            "upgrade",
            "whether WebSockets come through",
            partial(look_at_upgrade, subject),
            needs=("public address",),
        ),
    ]


def _look_at_tunnel(subject: Subject) -> Sequence[Result]:
    tunnel = subject.config.tunnel
    if tunnel != "ngrok":
        found = shutil.which(shlex.split(tunnel)[0]) if tunnel else None
        return look_at_tunnel_program(tunnel, True, Path(found) if found else None)
    from wsvoice.doctor.ngrok import find_agent, has_token

    return look_at_tunnel_program(tunnel, has_token(subject.environ), find_agent(subject.environ))


def _at_once(look: Callable[..., Sequence[Result]], *arguments: object) -> Callable[[], Awaitable[Sequence[Result]]]:
    async def look_now() -> Sequence[Result]:
        return look(*arguments)

    return look_now


def _in_thread(look: Callable[[], Sequence[Result]]) -> Callable[[], Awaitable[Sequence[Result]]]:
    return lambda: asyncio.to_thread(look)
