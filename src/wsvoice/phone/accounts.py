"""Whose account a real call goes through, where the user names no provider."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from loguru import logger

from wsvoice.call import Call
from wsvoice.errors import ApiError, UsageError
from wsvoice.phone.client import carry_out
from wsvoice.providers import PROVIDERS, load_account, load_company
from wsvoice.providers.account import Account
from wsvoice.providers.fields import listed

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
#: What the ids of calls look like; who is not named has none that outlast a call.
_CALL_IDS = {
    # https://www.twilio.com/docs/glossary/what-is-a-sid
    "twilio": re.compile(r"CA[0-9a-f]{32}"),
    # https://developers.telnyx.com/api-reference/callbacks/call-hangup
    "telnyx": re.compile(r"v[0-9]:\S+"),
    # https://www.plivo.com/docs/voice/xml/request
    "plivo": _UUID,
    # https://developer.exotel.com/docs/references/webhooks
    "exotel": re.compile(r"[0-9a-f]{32,36}"),
    # https://developer.signalwire.com/compatibility-api/cxml/voice/stream
    "signalwire": _UUID,
    # https://dev.bandwidth.com/docs/voice/webhooks
    "bandwidth": re.compile(r"c-[0-9a-f-]{20,}"),
    # https://developer.vonage.com/en/voice/voice-api/webhook-reference#answer-webhook
    "vonage": _UUID,
}


def account_for_calls(provider: str | None, credentials: Mapping[str, str]) -> Account:
    """
    Return the account through which calls are placed and ended, with all credentials that it needs.

    Args:
        provider: The provider's name; ``None`` for the only one whose credentials are set.
        credentials: By environment variable name.

    Raises:
        ConfigError: If credentials are missing.
        UsageError: If it is not clear whose account is meant, or its API has no calls.
    """
    if provider is None:
        ready = [name for name in PROVIDERS if is_ready(find_account(name, credentials))]
        if len(ready) != 1:
            told = f"credentials of {listed(ready)} are set" if ready else "no credentials of any are set"
            raise UsageError(f"it is not clear which provider is meant: {told}", hint="name it, as in `-t twilio`")
        [provider] = ready
    account = find_account(provider, credentials)
    if account is None or not account.has_calls:
        title, instead = load_company(provider).title, account.calls_instead if account is not None else ""
        hint = instead or "-t names another provider"
        raise UsageError(f"wsvoice cannot place or end {title}'s calls", hint=hint)
    account.check_credentials()
    return account


def account_of_call(call_id: str, provider: str | None, credentials: Mapping[str, str]) -> Account:
    """Return the account of the call `call_id`, told by what its id looks like; as :func:`account_for_calls`."""
    if call_id.strip() in ("", ".", ".."):
        raise UsageError(f"{call_id!r} is no call's id", hint="the log and reports have it, and the provider's console")
    if provider is None:
        alike = [name for name, shape in _CALL_IDS.items() if shape.fullmatch(call_id)]
        found = {name: account for name in alike if (account := find_account(name, credentials)) is not None}
        able = [name for name, account in found.items() if account.has_calls]
        ready = [name for name in able if is_ready(found[name])]
        if len(able) != 1 and len(ready) != 1:
            told = f"it may be {', '.join(able)}" if able else "no provider's ids look like it"
            raise UsageError(
                f"it is not clear whose call {call_id!r} is: {told}", hint="name the provider, as in `-t twilio`"
            )
        [provider] = able if len(able) == 1 else ready
    named = find_account(provider, credentials)
    # One without calls says itself what to do instead.
    return account_for_calls(provider, credentials) if named is None or named.has_calls else named


async def hang_up(account: Account, call_id: str, *, on_wait: Callable[[str], None] = logger.info) -> bool:
    """
    End a call; true unless it had ended by itself.

    Args:
        on_wait: As of :func:`~wsvoice.phone.client.carry_out`.

    Raises:
        ApiError: If that could not be done.
    """
    try:
        return await carry_out(account.hang_up(Call(account.name, call_id)), on_wait=on_wait)
    except ApiError as error:
        if error.kind == "ended":
            return False
        raise


async def limits_of(account: Account) -> list[str]:
    """
    Return what a trial account cannot do, one line each; nothing for any other.

    Raises:
        ApiError: If the credentials are wrong. What else goes wrong is for the call itself to tell.
    """
    try:
        info = await carry_out(account.describe())
    except ApiError as error:
        if error.kind == "credentials":
            raise
        return []
    return list(info.limits) or ["it has limits, which the company's console tells"] if info.is_trial else []


def find_account(name: str, credentials: Mapping[str, str]) -> Account | None:
    """Return a provider's account; ``None`` if it has no API for its customers."""
    try:
        return load_account(name, credentials)
    except ModuleNotFoundError as error:
        if error.name != f"wsvoice.providers.{name}.account":
            raise
        return None


def is_ready(account: Account | None) -> bool:
    """Return whether calls can be placed through an account, as far as its credentials go."""
    return account is not None and account.has_calls and not account.missing_credentials()


def looks_like_a_call(text: str) -> bool:
    """Return whether `text` could be the id of some provider's call."""
    return any(shape.fullmatch(text) for shape in _CALL_IDS.values())
