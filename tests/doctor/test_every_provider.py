"""Every provider's webhook and stream, looked at through the public address with the credentials that a user has."""

from __future__ import annotations

import pytest

from tests.doctor.conftest import Practice, echo, port_of
from wsvoice.doctor.checkup import Examined
from wsvoice.providers import PROVIDERS, load_account, load_simulator

LOOKED_AT = ("server", "public name", "certificate", "public address", "upgrade")


def examined(practice: Practice, name: str) -> dict[str, Examined]:
    """Serve a provider's calls, and look at everything that they come through."""
    _, users = load_simulator(name).test_credentials(bytes(range(32)))
    served = practice.start(echo, transport=name, proxy=practice.front.host, credentials=users)
    practice.front.backend = port_of(served.url)
    practice.change(transport=name, credentials=users, port=port_of(served.url))
    found = practice.examine(only=(*LOOKED_AT, f"{name} webhook"))
    if load_simulator(name).has_webhook:
        # A test call that nobody makes leaves no place taken, where the provider would say that it is over.
        said = load_simulator(name, users).can_verify() and name != "telnyx"
        assert not said or served.switchboard.capacity.reserved == 0
    return {each.name: each for each in found}


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_healthy_server_is_found_healthy(practice: Practice, name: str) -> None:
    found = examined(practice, name)
    wrong = {each.name: each.results for each in found.values() if each.level in ("warn", "fail")}
    assert wrong == {}
    assert (f"{name} webhook" in found) == load_simulator(name).has_webhook


def test_a_server_on_this_machine_alone_is_found_healthy(practice: Practice) -> None:
    served = practice.start(echo, transport=None)
    practice.change(transport=None, proxy=None, credentials={}, port=port_of(served.url))
    practice.number = ""
    found = practice.examine()
    assert {each.name: each.results for each in found if each.level in ("warn", "fail")} == {}
    assert {f"{name} webhook" for name in PROVIDERS if name != "asterisk"} <= {each.name for each in found}


def test_what_only_the_provider_can_sign_has_to_be_refused_from_others(practice: Practice) -> None:
    [result] = examined(practice, "telnyx")["telnyx webhook"].results
    assert result.message == (
        f"https://{practice.front.host}/ refuses a webhook that Telnyx has not signed, and nobody else can sign one"
    )


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_page_of_codes_is_an_address(name: str) -> None:
    page = load_account(name).codes_page
    assert page == "" or page.startswith("https://")
