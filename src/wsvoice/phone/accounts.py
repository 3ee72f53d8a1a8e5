"""Whose account a command is for, where that was not said."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from wsvoice.errors import ConfigError
from wsvoice.providers import PROVIDERS, load_account
from wsvoice.providers.account import Account


def choose_account(name: str | None, credentials: Mapping[str, str]) -> Account:
    """
    Return the account of the provider called `name`, or else of the only one whose credentials are set.

    Raises:
        ConfigError: If its credentials are missing, or there are none or several.
    """
    if name is not None:
        account = load_account(name, credentials)
        account.check_credentials()
        return account
    able = []
    for each in PROVIDERS:
        with suppress(ConfigError):
            account = load_account(each, credentials)
            account.check_credentials()
            if account.needed:
                able.append(account)
    if len(able) == 1:
        return able[0]
    if not able:
        raise ConfigError(
            "no provider's credentials are set", hint="say whose account it is, and what is missing: `-t twilio`"
        )
    titles = " and ".join(each.title for each in able)
    raise ConfigError(
        f"there are credentials of {titles}", hint=f"choose one: {' or '.join(f'`-t {each.name}`' for each in able)}"
    )
