"""Who gets in, who does not, and what they are told: on real sockets."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from twilio.request_validator import RequestValidator

from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled
from wsvoice.call import Call
from wsvoice.config import RunConfig
from wsvoice.errors import ConfigError, SignatureError, TokenError
from wsvoice.runner.gate import RETRY_WINDOW_S, TOKEN_TTL_S, Capacity, ReplayGuard, TokenMint

TOKEN = "wsvoice_test_auth_token_0000001"
SIGNED = {"credentials": {"TWILIO_AUTH_TOKEN": TOKEN}}
CALL = Call("twilio", "CA1", from_number="+15550100001", to_number="+15550100002")


def sign(url: str, form: dict[str, str]) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(url, form)}


async def refused(url: str) -> tuple[int, str]:
    """Dial a stream that must not be accepted; return the HTTP status and text."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(url, compression=None):
            pass
    response = caught.value.response
    return response.status_code, (response.body or b"").decode()


class TestWebhooks:
    def test_signed_by_the_official_sdk(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, **SIGNED)
        answer = httpx.post(server.url, data=FORM, headers=sign(server.url, FORM))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/xml")
        assert re.search(rf'url="{server.ws_url}ws/twilio/[A-Za-z0-9_.-]+"', answer.text)

    @pytest.mark.parametrize(
        ("headers", "word"),
        [({}, "carries no"), ({"X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="}, "does not match")],
        ids=["missing", "forged"],
    )
    def test_unsigned(self, serve: Callable[..., Any], headers: dict[str, str], word: str) -> None:
        server = serve(bots.echo, **SIGNED)
        answer = httpx.post(server.url, data=FORM, headers=headers)
        assert answer.status_code == 403
        assert "Stream" not in answer.text
        [line] = server.lines("webhook refused (403)")
        assert word in line

    def test_an_empty_post_is_refused_too(self, serve: Callable[..., Any]) -> None:
        assert httpx.post(serve(bots.echo, **SIGNED).url).status_code == 403

    def test_signature_of_another_body(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, **SIGNED)
        headers = sign(server.url, FORM)
        assert httpx.post(server.url, data={**FORM, "From": "+15550666"}, headers=headers).status_code == 403

    def test_replayed(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, **SIGNED)
        headers = sign(server.url, FORM)
        assert httpx.post(server.url, data=FORM, headers=headers).status_code == 200
        assert httpx.post(server.url, data=FORM, headers=headers).status_code == 403
        assert len(server.lines("replay")) == 1

    def test_twilios_own_retry_is_no_replay(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, **SIGNED)
        headers = {**sign(server.url, FORM), "I-Twilio-Idempotency-Token": "one"}
        assert [httpx.post(server.url, data=FORM, headers=headers).status_code for _ in range(2)] == [200, 200]
        headers["I-Twilio-Idempotency-Token"] = "two"
        assert httpx.post(server.url, data=FORM, headers=headers).status_code == 403

    def test_behind_a_proxy_the_configured_url_is_what_counts(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, proxy="voice.example.com", **SIGNED)
        headers = sign("https://voice.example.com/twilio", FORM)
        answer = httpx.post(server.url + "twilio", data=FORM, headers={**headers, "X-Forwarded-Host": "evil.example"})
        assert answer.status_code == 200
        assert 'url="wss://voice.example.com/ws/twilio/' in answer.text
        assert httpx.post(server.url, data=FORM, headers=sign(server.url, FORM)).status_code == 403

    def test_by_get(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, **SIGNED)
        url = str(httpx.URL(server.url, params=FORM))
        assert httpx.get(url, headers=sign(url, {})).status_code == 200
        assert httpx.get(url + "&x=1", headers=sign(url, {})).status_code == 403

    def test_no_call_in_it(self, serve: Callable[..., Any]) -> None:
        answer = httpx.post(serve(bots.echo).url, data={"From": "+1"})
        assert answer.status_code == 400
        assert "CallSid" in answer.text

    @pytest.mark.parametrize("chunked", [False, True])
    def test_body_over_the_limit(self, serve: Callable[..., Any], chunked: bool) -> None:
        server = serve(bots.echo)
        body = b"From=" + b"1" * 70_000
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        content: Any = iter([body[:40_000], body[40_000:]]) if chunked else body
        try:
            assert httpx.post(server.url, content=content, headers=headers).status_code == 413
        except httpx.WriteError:  # The answer came, and the connection went, before all was sent.
            assert server.lines("larger than")
        assert httpx.post(server.url, data=FORM).status_code == 200

    def test_a_content_length_that_is_no_number(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)
        parts = urlsplit(server.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", "many")
        connection.endheaders()
        assert connection.getresponse().status == 400
        assert httpx.post(server.url, data=FORM).status_code == 200

    def test_parameters_reach_the_document_escaped(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, parameters={"tenant": 'a"<b>&'})
        answer = httpx.post(server.url, data=FORM)
        assert "a&quot;&lt;b&gt;&amp;" in answer.text or "a&#34;&lt;b&gt;&amp;" in answer.text
        assert '<Parameter name="from_number" value="+15550100001"' in answer.text

    def test_enforce_without_a_secret_does_not_start(self, serve: Callable[..., Any]) -> None:
        with pytest.raises(ConfigError, match="TWILIO_AUTH_TOKEN"):
            serve(bots.echo, verify="enforce")

    def test_a_provider_that_cannot_be_verified_is_no_door_beside_one_that_can(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, transport=None, proxy="voice.example.com", **SIGNED)
        assert list(server.switchboard.providers) == ["twilio"]
        assert httpx.post(server.url + "plivo", data={"CallUUID": "1", "Event": "StartApp"}).status_code == 404
        assert httpx.post(server.url + "twilio", data=FORM).status_code == 403

    def test_without_a_name_every_provider_is_served_locally(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, transport=None)
        assert 'url="ws://' in httpx.post(server.url + "twilio", data=FORM).text
        assert "<Stream" in httpx.post(server.url, data=FORM).text
        plivo = {"CallUUID": "12345678-1234-1234-1234-123456789abc", "From": "15550100001", "To": "15550100002"}
        plivo |= {"Direction": "inbound", "Event": "StartApp", "CallStatus": "ringing"}
        assert "/ws/plivo/" in httpx.post(server.url, data=plivo).text
        assert httpx.post(server.url, data={"x": "y"}).status_code == 404

    def test_health(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)
        assert httpx.get(server.url + "healthz").json() == {"status": "ok", "calls": 0}
        assert httpx.get(server.url + "readyz").status_code == 200
        server.switchboard.drain()
        assert httpx.get(server.url + "readyz").status_code == 503
        assert httpx.get(server.url + "healthz").status_code == 200
        assert "Reject" in httpx.post(server.url, data=FORM).text


class TestStreams:
    def test_token_works_once(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, proxy="voice.example.com")
        url = announce(server.url).replace("wss://voice.example.com/", server.ws_url)

        async def main() -> None:
            async with dialled(url) as carrier:
                await carrier.speak(bytes(320 * 5))
                await carrier.hang_up()
            assert (await refused(url))[0] == 403

        asyncio.run(main())
        assert server.lines("stream refused (403)", "used before")

    @pytest.mark.parametrize("path", ["ws", "ws/twilio", "ws/twilio/none", "ws/twilio/a.b", "ws/twilio/%2e%2e"])
    def test_no_token_on_a_public_address(self, serve: Callable[..., Any], path: str) -> None:
        server = serve(bots.echo, proxy="voice.example.com")
        assert asyncio.run(refused(server.ws_url + path))[0] in (403, 404)
        assert server.switchboard.active_calls == 0

    def test_expired_token(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)
        url = announce(server.url)
        tokens = server.switchboard.gate.tokens
        clock = tokens._now
        tokens._now = lambda: clock() + TOKEN_TTL_S + 1
        assert asyncio.run(refused(url))[0] == 403
        assert server.lines("stream refused (403)", "expired")
        # One that is minted now is good.
        url = announce(server.url, "CA" + "5" * 32)

        async def main() -> None:
            async with dialled(url, "CA" + "5" * 32) as carrier:
                await carrier.hang_up()

        asyncio.run(main())

    def test_token_of_another_server(self, serve: Callable[..., Any]) -> None:
        one, two = serve(bots.echo), serve(bots.echo)
        url = announce(one.url).replace(one.ws_url, two.ws_url)
        assert asyncio.run(refused(url))[0] == 403

    def test_token_of_another_call(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)
        url = announce(server.url)

        async def main() -> None:
            async with dialled(url, "CA" + "9" * 32) as carrier:
                assert (await carrier.closed())[0] == 1008

        asyncio.run(main())
        assert server.lines("its token is not")

    def test_open_on_localhost_only(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)

        async def main() -> None:
            async with dialled(server.ws_url + "ws") as carrier:
                await carrier.hang_up()
            forwarded = {"X-Forwarded-For": "203.0.113.9"}
            with pytest.raises(websockets.InvalidStatus):
                async with websockets.connect(server.ws_url + "ws", additional_headers=forwarded):
                    pass

        asyncio.run(main())

    def test_stream_auth_none_opens_a_public_address(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, proxy="voice.example.com", stream_auth="none")

        async def main() -> None:
            async with dialled(server.ws_url + "ws/twilio") as carrier:
                await carrier.hang_up()

        asyncio.run(main())

    def test_a_full_house(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, max_calls=1)
        first = announce(server.url)
        assert "busy" in httpx.post(server.url, data={**FORM, "CallSid": "CA" + "2" * 32}).text

        async def main() -> None:
            # The first call's place is kept for it, and is not given to a stream without a webhook.
            assert (await refused(server.ws_url + "ws"))[0] == 503
            async with dialled(first) as carrier:
                await carrier.hang_up()
            async with asyncio.timeout(5):
                while server.switchboard.active_calls:
                    await asyncio.sleep(0.01)
            async with dialled(announce(server.url, "CA" + "3" * 32), "CA" + "3" * 32) as carrier:
                await carrier.hang_up()

        asyncio.run(main())

    def test_upgrade_signature_is_enforced_only_when_asked(self, serve: Callable[..., Any]) -> None:
        relaxed = serve(bots.echo, **SIGNED)
        strict = serve(bots.echo, verify="enforce", **SIGNED)

        async def main() -> None:
            url = announce(relaxed.url, headers=sign(relaxed.url, FORM))
            async with dialled(url) as carrier:
                await carrier.hang_up()
            url = announce(strict.url, headers=sign(strict.url, FORM))
            assert (await refused(url))[0] == 403
            form = {**FORM, "CallSid": "CA" + "4" * 32}
            url = announce(strict.url, form["CallSid"], headers=sign(strict.url, form))
            # http and ws differ only in their scheme; the provider would sign the wss form.
            signature = RequestValidator(TOKEN).compute_signature(url.replace("ws://", "wss://"), {})
            async with websockets.connect(url, additional_headers={"X-Twilio-Signature": signature}) as socket:
                assert socket.response is not None
                assert socket.response.status_code == 101

        asyncio.run(main())


def test_limits_unless_told_otherwise() -> None:
    config = RunConfig()
    assert config.handshake_timeout_s == 10.0
    assert config.send_timeout_s == 10.0
    assert config.message_limit == 64 * 1024


class TestTokenMint:
    def test_round_trip(self) -> None:
        mint = TokenMint()
        token = mint.mint(CALL)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", token)
        assert mint.redeem(token, "twilio") == CALL

    def test_expires(self) -> None:
        now = [1000.0]
        mint = TokenMint(now=lambda: now[0])
        token = mint.mint(CALL)
        now[0] += TOKEN_TTL_S + 1
        with pytest.raises(TokenError, match="expired"):
            mint.redeem(token, "twilio")

    def test_other_provider(self) -> None:
        mint = TokenMint()
        with pytest.raises(TokenError, match="twilio"):
            mint.redeem(mint.mint(CALL), "plivo")

    @pytest.mark.parametrize("token", ["", ".", "a", "a.b.c", "\u00e9.x", "e30.e30"])
    def test_forged(self, token: str) -> None:
        with pytest.raises(TokenError):
            TokenMint().redeem(token, "twilio")

    def test_every_changed_character_is_noticed(self) -> None:
        mint = TokenMint()
        token = mint.mint(CALL)
        for index, letter in enumerate(token):
            changed = token[:index] + ("A" if letter != "A" else "B") + token[index + 1 :]
            with pytest.raises(TokenError):
                mint.redeem(changed, "twilio")
        mint.redeem(token, "twilio")

    def test_used_ones_are_forgotten_when_they_have_expired(self) -> None:
        now = [1000.0]
        mint = TokenMint(now=lambda: now[0])
        for _ in range(100):
            mint.redeem(mint.mint(CALL), "twilio")
            now[0] += TOKEN_TTL_S
        assert len(mint._used) <= 3

    def test_a_shared_secret_works_in_another_process(self) -> None:
        token = TokenMint(secret=b"s" * 32).mint(CALL)
        assert TokenMint(secret=b"s" * 32).redeem(token, "twilio") == CALL


class TestReplayGuard:
    def test_window(self) -> None:
        now = [0.0]
        guard = ReplayGuard(now=lambda: now[0])
        guard.check("a", "")
        with pytest.raises(SignatureError):
            guard.check("a", "")
        now[0] = 24 * 3600 + 1
        guard.check("a", "")

    def test_a_retry_id_is_good_for_a_short_time(self) -> None:
        now = [0.0]
        guard = ReplayGuard(now=lambda: now[0])
        guard.check("a", "id")
        guard.check("a", "id")
        now[0] = RETRY_WINDOW_S + 1
        with pytest.raises(SignatureError):
            guard.check("a", "id")


class TestCapacity:
    def test_reserving_twice_takes_one_place(self) -> None:
        capacity = Capacity(1)
        assert capacity.reserve(CALL)
        assert capacity.reserve(CALL)
        assert not capacity.occupy(None)
        assert capacity.occupy(CALL)
        assert not capacity.reserve(Call("twilio", "CA2"))
        capacity.release()
        assert capacity.reserve(Call("twilio", "CA2"))

    def test_a_place_that_is_not_taken_is_given_back(self) -> None:
        now = [0.0]
        capacity = Capacity(1, now=lambda: now[0])
        assert capacity.reserve(CALL)
        now[0] = TOKEN_TTL_S + 1
        assert capacity.occupy(None)
