"""A number of each provider is pointed at a server and back, by its REST API as it stands in a test call."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.phone.exchange import Exchange, ExchangeServer
from wsvoice.errors import ApiError, NumberError
from wsvoice.phone.client import carry_out
from wsvoice.phone.numbers import PointedNumber, find_number, restore_left
from wsvoice.providers import load_account
from wsvoice.providers.account import Account, ServerAddresses, Steps

NUMBER, OTHER = "+15551234567", "+15557654321"
OLD = "https://old.example/voice"
HERE = ServerAddresses("https://here.example/", "https://here.example/status")
MOVED = ServerAddresses("https://moved.example/", "https://moved.example/status")
PROVIDERS = ["twilio", "telnyx", "plivo", "signalwire", "vonage"]
ACCOUNT_NAMES = {"twilio": "TWILIO_ACCOUNT_SID", "signalwire": "SIGNALWIRE_PROJECT_ID"}
MORE_CREDENTIALS = {
    "signalwire": {
        "SIGNALWIRE_SPACE": "example.signalwire.com",
        "SIGNALWIRE_API_TOKEN": "PT00000000000000000000000000000001",
    },
}


class KilledError(BaseException):
    """The process is gone, between two requests."""


def add_numbers(exchange: Exchange) -> None:
    """Add two numbers, which share what numbers of that provider's can share."""
    account: Any = exchange.account
    match exchange.name:
        case "telnyx":
            settings = {"connection_id": account.add_application("texml_application", "Support", url=OLD)}
        case "plivo":
            settings = {"app_id": account.add_application("Support", answer_url=OLD)}
        case "vonage":
            account.applications["support"] = {
                "id": "support",
                "name": "Support",
                "keys": {"public_key": "key"},
                "capabilities": {"voice": {"webhooks": {"answer_url": {"address": OLD, "http_method": "GET"}}}},
            }
            settings = {"app_id": "support"}
        case _:
            settings = {"VoiceUrl": OLD}
    for number in (NUMBER, OTHER):
        account.add_number(number, **settings)


def everything(exchange: Exchange) -> Any:
    """What the account has beside calls, as it is now."""
    kept = [getattr(exchange.account, name, None) for name in ("numbers", "applications", "connections")]
    return copy.deepcopy(kept)


def rings_at(exchange: Exchange, number: str = NUMBER) -> str:
    callback = exchange.account.points_at(number)
    return "" if callback is None else callback.url


@pytest.fixture(scope="module", params=PROVIDERS)
def server(request: pytest.FixtureRequest) -> Iterator[Exchange]:
    with ExchangeServer(request.param) as exchange:
        # What only real calls need, and test calls do without.
        account: Any = exchange.account
        more = dict(MORE_CREDENTIALS.get(request.param, {}))
        if name := ACCOUNT_NAMES.get(request.param):
            more[name] = account.account_id
        for credentials in (exchange.credentials, account.company.credentials):
            credentials |= more
        add_numbers(exchange)
        yield exchange


@pytest.fixture
def exchange(server: Exchange) -> Iterator[Exchange]:
    """The provider with two numbers, which a test leaves as they were."""
    before = everything(server)
    yield server
    assert everything(server) == before
    assert (rings_at(server), rings_at(server, OTHER)) == (OLD, OLD)


def account_of(exchange: Exchange) -> Account:
    # Vonage's calls come in under a chosen application; here each number's is its own.
    credentials = {name: value for name, value in exchange.credentials.items() if name != "VONAGE_APPLICATION_ID"}
    return load_account(exchange.name, credentials)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "numbers").glob("*"))


def test_it_is_pointed_moved_and_put_back(exchange: Exchange, tmp_path: Path) -> None:
    async def main() -> None:
        number = PointedNumber(account_of(exchange), NUMBER, tmp_path)
        found = await number.claim()
        assert OLD in found.points_at or "Support" in found.points_at
        await number.point(HERE)
        assert (rings_at(exchange), rings_at(exchange, OTHER)) == (HERE.webhook, OLD)
        assert await number.move(MOVED)
        assert (rings_at(exchange), rings_at(exchange, OTHER)) == (MOVED.webhook, OLD)
        assert await number.put_back() == "restored"
        number.release()

    asyncio.run(main())
    assert files(tmp_path) == []


def killed_after(count: int, steps: Steps[None], *, saves: bool) -> Steps[None]:
    """Carry out so many requests, of which the last one's answer is lost, or else `saves` what comes next."""
    request = next(steps)
    while True:
        response = yield request
        count -= 1
        if count <= 0 and not saves:
            raise KilledError
        try:
            request = steps.send(response)
        except StopIteration:
            return
        if count <= 0:
            raise KilledError


@pytest.mark.parametrize("saves", [False, True])
def test_it_is_put_back_wherever_the_process_was_killed(exchange: Exchange, tmp_path: Path, saves: bool) -> None:
    """After a request, or right before the next one, when what was to be saved for that is."""
    before = everything(exchange)
    for count in range(1, 10):
        account = account_of(exchange)
        point = account.point

        def dying(*given: Any, count: int = count, point: Any = point) -> Steps[None]:
            return killed_after(count, point(*given), saves=saves)

        account.point = dying  # type: ignore[method-assign]
        number = PointedNumber(account, NUMBER, tmp_path)
        asyncio.run(number.claim())
        died = False
        try:
            asyncio.run(number.point(HERE))
        except KilledError:
            died = True
        number.release()
        done = asyncio.run(restore_left(number.file, account_of(exchange)))
        assert done is None or done[1] in ("restored", "unchanged"), f"killed after {count} requests"
        assert everything(exchange) == before, f"killed after {count} requests"
        assert files(tmp_path) == []
        if not died:
            break
    assert not died
    assert count > 1 or saves


def test_two_runs_do_not_change_one_application(tmp_path: Path) -> None:
    """Vonage's application is one for all of its numbers, and each run would put back what the other one did."""
    with ExchangeServer("vonage") as exchange:
        add_numbers(exchange)
        before = everything(exchange)

        def pointed(number: str) -> PointedNumber:
            return PointedNumber(load_account("vonage", exchange.credentials), number, tmp_path)

        async def refused(number: PointedNumber) -> NumberError:
            with pytest.raises(NumberError) as caught:
                await number.claim()
            return caught.value

        async def main() -> None:
            first = pointed(NUMBER)
            await first.claim()
            await first.point(HERE)
            application = f"application {exchange.credentials['VONAGE_APPLICATION_ID']}"
            assert f"{OTHER} shares {application} with a number" in (await refused(pointed(OTHER))).message
            # As if it had died.
            first.release()
            error = await refused(pointed(OTHER))
            assert f"with {NUMBER}, which was left pointed by a run that died" in error.message
            assert error.hint == f"`wsvoice number restore {NUMBER}` puts both back"
            await restore_left(first.file, first.account)
            second = pointed(OTHER)
            await second.claim()
            await second.point(HERE)
            assert await second.put_back() == "restored"
            second.release()

        asyncio.run(main())
        assert everything(exchange) == before
    assert files(tmp_path) == []


def test_a_number_leaves_an_application_that_is_somebody_elses_by_now(tmp_path: Path) -> None:
    with ExchangeServer("vonage") as exchange:
        add_numbers(exchange)

        async def main() -> None:
            number = PointedNumber(load_account("vonage", exchange.credentials), NUMBER, tmp_path)
            await number.claim()
            await number.point(HERE)
            account: Any = exchange.account
            application = account.applications[exchange.credentials["VONAGE_APPLICATION_ID"]]
            application["capabilities"]["voice"]["webhooks"]["answer_url"]["address"] = MOVED.webhook
            after = copy.deepcopy(application)
            assert rings_at(exchange) == MOVED.webhook
            assert await number.put_back() == "restored"
            number.release()
            assert rings_at(exchange) == OLD
            assert application == after

        asyncio.run(main())


def test_a_number_of_somebody_elses_is_answered_with_our_own(exchange: Exchange, tmp_path: Path) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(find_number(account_of(exchange), "+15551234568"))
    assert caught.value.kind == "number"
    assert caught.value.hint == f"the account has {NUMBER}, {OTHER}"


def test_wrong_credentials_are_said_and_change_nothing(exchange: Exchange, tmp_path: Path) -> None:
    account = account_of(exchange)
    secrets = [name for name in account.credentials if re.search("TOKEN|SECRET|API_KEY", name)]
    account.credentials |= dict.fromkeys(secrets, "wrong")
    with pytest.raises(ApiError) as caught:
        asyncio.run(PointedNumber(account, NUMBER, tmp_path).claim())
    assert caught.value.kind == "credentials"
    assert files(tmp_path) == []


def test_each_number_is_listed(exchange: Exchange) -> None:
    numbers = asyncio.run(carry_out(account_of(exchange).numbers()))
    assert sorted(each.number for each in numbers) == [NUMBER, OTHER]
    assert all(each.has_voice and not each.obstacle for each in numbers)
