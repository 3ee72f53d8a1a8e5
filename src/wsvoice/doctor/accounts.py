"""The providers' accounts: credentials, numbers, and what runs that are gone have left behind."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from wsvoice.config import without_secrets
from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.doctor.subject import Subject
from wsvoice.errors import ApiError, ConfigError, NumberError
from wsvoice.phone.client import carry_out
from wsvoice.phone.numbers import find_number, is_pointed_by_hand, number_files
from wsvoice.providers import PROVIDERS, load_server

#: The ports that a URL without one means.
_PORTS = {"http": 80, "https": 443}


async def look_at_account(subject: Subject, name: str) -> list[Result]:
    """Look whether the provider takes the credentials, and what the account cannot do."""
    account = subject.account(name)
    results = [_missing_secret(subject, name)]
    try:
        account.check_credentials()
    except ConfigError as error:
        # Without them calls can come in, but none placed and no number looked at.
        results.append(warn(error.message, error.hint or ""))
        return [each for each in results if each is not None]
    try:
        info = await carry_out(account.describe())
    except ApiError as error:
        if error.kind == "unsupported":
            results.append(skipped(error.message))
        else:
            results.append(fail(error.message, error.hint))
        return [each for each in results if each is not None]
    named = f"{account.title} knows the account {info.account_id}" + (f" ({info.name})" if info.name else "")
    if info.is_trial:
        results.append(warn(f"{named}: it is a trial account", f"upgrade it at {account.title} before others call"))
    limits = "limit of the trial account" if info.is_trial else "limit of the account"
    upgrade = f"upgrade it at {account.title}" if info.is_trial else f"see the account at {account.title}"
    results += [warn(f"{limits}: {each}", upgrade) for each in info.limits]
    if not info.is_trial:
        results.append(ok(named))
    return [each for each in results if each is not None]


def _missing_secret(subject: Subject, name: str) -> Result | None:
    """Return that webhooks on the public address could not be checked, if so."""
    server = load_server(name, subject.config.credentials)
    if not (subject.public_url and server.signs and server.has_webhook) or server.can_verify():
        return None
    if subject.config.verify == "off":
        return None
    secret = server.credential_names[0]
    return fail(
        f"on a public address {server.title}'s webhooks are checked, and {secret} is not set",
        f"it is {server.secret_place}; set it in the environment or in .env",
    )


async def look_at_number(subject: Subject, name: str, number: str) -> list[Result]:
    """Look whether a number takes calls, whether they come here, and what stands in the way of that."""
    account = subject.account(name)
    try:
        account.check_credentials()
        found = await find_number(account, number)
    except ConfigError as error:
        return [skipped(error.message)]
    except ApiError as error:
        if error.kind == "unsupported":
            return [skipped(error.message)]
        return [fail(error.message, error.hint)]
    if not found.has_voice:
        return [
            fail(f"{number} takes no calls: it is a number without voice", f"get one with voice at {account.title}")
        ]
    results = [warn(each, f"`wsvoice number show {number} -t {name}` shows its settings") for each in found.warnings]
    if found.obstacle:
        results.append(warn(f"{number} cannot be pointed here: {found.obstacle}", found.hint))
    wanted, there = subject.webhook_url(name) if subject.public_url else "", without_secrets(found.points_at)
    if not found.points_at:
        results.append(fail(f"calls to {number} go nowhere", _how_to_point(subject, name, number, wanted)))
    elif wanted and "://" in found.points_at and (why := _astray(found.points_at, subject, name)):
        text = f"calls to {number} go to {there}, and not to {wanted}: {why}"
        results.append(fail(text, _how_to_point(subject, name, number, wanted)))
    elif wanted and "://" not in found.points_at:
        text = f"calls to {number} go to {there}; whether that leads to {wanted} is not known"
        results.append(warn(text, _how_to_point(subject, name, number, wanted)))
    return results or [ok(f"calls to {number} go to {there}")]


def _how_to_point(subject: Subject, name: str, number: str, wanted: str) -> str:
    by_hand = f"enter {wanted} at {load_server(name).webhook_place}" if wanted else ""
    if is_pointed_by_hand(subject.account(name)):
        return by_hand
    by_hand = f"{by_hand}, or " if by_hand else ""
    where = f"-x {subject.config.proxy}" if subject.config.proxy else "--tunnel ngrok"
    return f"{by_hand}start with `wsvoice run {subject.config.bot} -t {name} {where} --number {number}`"


def _astray(there: str, subject: Subject, name: str) -> str:
    """Return why `there` is not this server; empty if it is, by the path of one provider or by that of all."""
    found = [difference(there, f"{subject.public_url}{path}") for path in (subject.webhook_path(name), "/", f"/{name}")]
    return "" if "" in found else found[0]


def difference(there: str, here: str) -> str:
    """Return in which part of a URL two webhooks differ, as a signature sees it; empty if in none."""
    try:
        a, b = urlsplit(there), urlsplit(here)
        ports = _port(a), _port(b)
    except ValueError:
        return "it is not a URL"
    if a.hostname != b.hostname:
        return "it is another host"
    if a.scheme != b.scheme:
        return f"it begins with {a.scheme}://, which is not encrypted" if a.scheme == "http" else "the scheme differs"
    if ports[0] != ports[1]:
        return "the port differs"
    if (a.path or "/") != (b.path or "/"):
        only_slash = (a.path.rstrip("/") or "/") == (b.path.rstrip("/") or "/")
        # A server of wsvoice's answers both, and the signature covers what the provider was told.
        return "" if only_slash else "the path differs"
    return "" if a.query == b.query else "the query differs"


def _port(parts: SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)


async def look_at_left_numbers(subject: Subject) -> list[Result]:
    """Look for numbers that still point at runs which are gone."""
    results, n_running = [], 0
    for file in number_files(subject.state):
        if file.holder() is not None:
            n_running += 1
            continue
        try:
            record = file.read()
        except NumberError as error:
            results.append(warn(error.message, error.hint or ""))
            continue
        if record is not None:
            title = PROVIDERS.get(record.provider, record.provider)
            was = f"; it rang at {without_secrets(record.was)}" if record.was else ""
            text = f"{record.number} at {title} still points at a run that is gone, process {record.pid}{was}"
            results.append(fail(text, f"`wsvoice number restore {record.number}` puts it back"))
    return results or [ok(f"{n_running} ring at runs that live" if n_running else "none was left behind")]
