"""What a provider's error code means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wsvoice.providers import PROVIDERS, load_account
from wsvoice.providers.account import Account

#: How far from an unknown code others are looked for, and how many of them are named.
_NEAR, _SHOWN = 60, 3


@dataclass(frozen=True, slots=True)
class Explained:
    """
    A code of a provider's, in words.

    Attributes:
        provider: As in ``wsvoice run -t NAME``.
        title: As the company writes itself.
        code: The code.
        meaning: What it means.
        hint: What mends it.
        page: The provider's own page; empty where none is known.
    """

    provider: str
    title: str
    code: str
    meaning: str
    hint: str
    page: str = ""


def explain(code: str, provider: str | None, credentials: Mapping[str, str]) -> list[Explained]:
    """
    Return what `code` means to `provider`, or to each that knows it; empty if none does.

    Args:
        credentials: By environment variable name; no request is sent.
    """
    found = []
    for account in _accounts(provider, credentials):
        if (explained := account.explain_code(code)) is not None:
            meaning, hint = explained
            found.append(Explained(account.name, account.title, code, meaning, hint, page_of(account, code)))
    return found


def near(code: str, provider: str | None, credentials: Mapping[str, str]) -> list[Explained]:
    """Return known codes whose numbers are the nearest to that of an unknown one, the nearest first."""
    if not (code.isascii() and code.isdigit()):
        return []
    number = int(code)
    around = sorted(range(max(0, number - _NEAR), number + _NEAR + 1), key=lambda each: abs(each - number))
    found: list[Explained] = []
    for each in around:
        found += explain(str(each), provider, credentials)
        if len(found) >= _SHOWN:
            break
    return found[:_SHOWN]


def pages(code: str, provider: str | None, others: Sequence[Explained]) -> list[tuple[str, str]]:
    """Return the pages that may explain `code`, each after its provider's title; only of those who have `others`."""
    names = {each.provider for each in others}
    accounts = [each for each in _accounts(provider, {}) if not names or each.name in names]
    return [(each.title, page) for each in accounts if (page := page_of(each, code))]


def page_of(account: Account, code: str) -> str:
    """Return the provider's page for `code`; empty where none is known."""
    return account.codes_page.replace("{code}", code) if code else account.codes_page.partition("{code}")[0]


def _accounts(provider: str | None, credentials: Mapping[str, str]) -> Iterable[Account]:
    return (load_account(name, credentials) for name in ([provider] if provider else PROVIDERS))
