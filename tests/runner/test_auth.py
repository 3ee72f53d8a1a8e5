"""Who gets in, who does not, and what they are told: on real sockets."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from twilio.request_validator import RequestValidator

from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled
from wsvoice.call import Call
from wsvoice.config import RunConfig
from wsvoice.errors import ConfigError, SignatureError, TokenError
from wsvoice.providers import PROVIDERS
from wsvoice.runner import auth
from wsvoice.runner.auth import (
    REPEAT_AGE_S,
    REPEAT_LIMIT,
    REPEAT_WINDOW_S,
    TOKEN_TTL_S,
    ReplayGuard,
    StreamTokens,
    TokenClaims,
    served_providers,
)
from wsvoice.runner.seals import Seals

TOKEN = "wsvoice_test_auth_token_0000001"
SIGNED = {"credentials": {"TWILIO_AUTH_TOKEN": TOKEN}}
CALL = Call("twilio", "CA1", from_number="+15550100001", to_number="+15550100002")


def sign(url: str, form: dict[str, str]) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(url, form)}


def repr_short(value: object) -> str:
    return ascii(value)[:20]


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

    def test_behind_a_proxy_the_configured_url_is_what_counts(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, proxy="voice.example.com", **SIGNED)
        headers = sign("https://voice.example.com/twilio", FORM)
        answer = httpx.post(server.url + "twilio", data=FORM, headers={**headers, "X-Forwarded-Host": "evil.example"})
        assert answer.status_code == 200
        assert 'url="wss://voice.example.com/ws/twilio/' in answer.text
        assert httpx.post(server.url, data=FORM, headers=sign(server.url, FORM)).status_code == 403

    def test_a_server_that_moves_is_signed_for_and_answers_for_its_new_host(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo, proxy="one.example.com", **SIGNED)

        def announced(host: str, call_sid: str) -> str:
            form = {**FORM, "CallSid": call_sid}
            return announce(server.url, call_sid, headers=sign(f"https://{host}/", form))

        async def main() -> None:
            url = announced("one.example.com", "CA1").replace("wss://one.example.com/", server.ws_url)
            async with dialled(url, "CA1") as running:
                await running.speak(bytes(320 * 5))
                server.switchboard.move("two.example.com")
                url = announced("two.example.com", "CA2")
                assert url.startswith("wss://two.example.com/ws/twilio/")
                async with dialled(url.replace("wss://two.example.com/", server.ws_url), "CA2") as other:
                    await other.speak(bytes(320 * 5))
                    await other.hang_up()
                await running.speak(bytes(320 * 10))
                async with asyncio.timeout(5):
                    # More than was said before the move.
                    while len(running.heard()) < 320 * 12:
                        await asyncio.sleep(0.01)
                await running.hang_up()

        asyncio.run(main())
        assert [record.ended_by for record in server.ended(2)] == ["caller", "caller"]
        old = httpx.post(server.url, data=FORM, headers=sign("https://one.example.com/", FORM))
        assert old.status_code == 403
        assert httpx.get(f"{server.url}healthz").headers["x-wsvoice-public-host"] == "two.example.com"

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

    @pytest.mark.parametrize("public", [{"proxy": "voice.example.com"}, {"tunnel": "ngrok"}], ids=["proxy", "tunnel"])
    def test_unverified_on_a_public_address_only_if_asked_for(self, public: dict[str, Any]) -> None:
        for name in PROVIDERS:
            provider = load_provider(name)
            config = RunConfig(transport=name, **public)
            if not provider.has_webhook:
                # Nothing could give its streams a token.
                with pytest.raises(ConfigError, match=provider.credential_names[0]):
                    served_providers(config)
                assert list(served_providers(replace(config, stream_auth="none"))) == [name]
                config = replace(config, credentials=provider.test_credentials(bytes(32))[1])
            assert list(served_providers(replace(config, verify="off"))) == [name]
            if not provider.signs:
                # Asked for by name: there is nothing that could be verified.
                assert list(served_providers(config)) == [name]
                continue
            with pytest.raises(ConfigError, match=provider.credential_names[0]) as caught:
                served_providers(config)
            assert "--verify off" in (caught.value.hint or "")
            _, secrets = provider.test_credentials(bytes(32))
            assert list(served_providers(replace(config, credentials=secrets))) == [name]
            # Without a name whoever can be verified is served, and nobody besides.
            everybody = replace(config, transport=None)
            assert list(served_providers(replace(everybody, credentials=secrets))) == [name]
            with pytest.raises(ConfigError) as caught:
                served_providers(everybody)
            assert provider.credential_names[0] in (caught.value.hint or "")
            assert list(served_providers(replace(everybody, verify="off"))) == list(PROVIDERS)

    def test_asterisk_is_served_beside_those_that_sign_if_it_has_a_password(self) -> None:
        password = {"ASTERISK_PASSWORD": "x"}
        everybody = RunConfig(proxy="voice.example.com", credentials={**SIGNED["credentials"], **password})
        for verify in ("auto", "enforce"):
            assert list(served_providers(replace(everybody, verify=verify))) == ["twilio", "asterisk"]
            assert list(served_providers(replace(everybody, verify=verify, transport="asterisk"))) == ["asterisk"]
        assert list(served_providers(replace(everybody, stream_auth="none"))) == ["twilio"]
        assert list(served_providers(replace(everybody, **SIGNED))) == ["twilio"]

    @pytest.mark.parametrize("secrets", [{}, {"ASTERISK_PASSWORD": "x"}])
    def test_what_checks_asterisk_instead_of_a_signature(self, secrets: dict[str, str]) -> None:
        with pytest.raises(ConfigError) as caught:
            served_providers(RunConfig(transport="asterisk", verify="enforce", credentials=secrets))
        assert "ASTERISK_PASSWORD is checked on a public address" in (caught.value.hint or "")
        assert "stream tokens" not in (caught.value.hint or "")

    def test_a_tunnel_is_not_opened_for_nothing(self, serve: Callable[..., Any]) -> None:
        with pytest.raises(ConfigError, match="TWILIO_AUTH_TOKEN"):
            serve(bots.echo, tunnel="ngrok")

    def test_a_tunnel_to_an_address_that_it_does_not_lead_to(self, serve: Callable[..., Any]) -> None:
        with pytest.raises(ConfigError, match=r"where a server with --host 127\.1 does not listen"):
            serve(bots.echo, tunnel="ngrok", host="127.1", **SIGNED)

    @pytest.mark.parametrize(
        ("transport", "path", "form", "words"),
        [
            ("twilio", "", {"CallUUID": "1", "Event": "StartApp"}, "Plivo's, which is not served here (-t plivo)"),
            (None, "twilio", {"CallUUID": "1", "Event": "StartApp"}, "Plivo's, whose webhook is /plivo"),
            ("plivo", "", FORM, "Twilio's, which is not served here (-t twilio)"),
            ("plivo", "twilio", FORM, "-t twilio"),
            ("plivo", "twilio/", FORM, "-t twilio"),
        ],
    )
    def test_the_wrong_address_names_the_right_one(
        self, serve: Callable[..., Any], transport: str | None, path: str, form: dict[str, str], words: str
    ) -> None:
        server = serve(bots.echo, transport=transport)
        answer = httpx.post(server.url + path, data=form)
        assert answer.status_code in (400, 404)
        assert words in answer.text

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
        server = serve(bots.echo, proxy="voice.example.com", verify="off")
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
        server = serve(bots.echo, proxy="voice.example.com", verify="off")
        assert asyncio.run(refused(server.ws_url + path))[0] in (403, 404)
        assert server.switchboard.active_calls == 0

    def test_expired_token(self, serve: Callable[..., Any]) -> None:
        server = serve(bots.echo)
        url = announce(server.url)
        tokens = server.switchboard.auth.tokens
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
        server.ended()
        assert server.lines("its token is for another")

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
        server = serve(bots.echo, proxy="voice.example.com", verify="off", stream_auth="none")

        async def main() -> None:
            async with dialled(server.ws_url + "ws/twilio") as carrier:
                await carrier.hang_up()

        asyncio.run(main())

    def test_every_place_is_taken(self, serve: Callable[..., Any]) -> None:
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

    def test_silent_streams_do_not_keep_their_places(self, serve: Callable[..., Any]) -> None:
        for transport in ("twilio", None):
            server = serve(bots.echo, transport=transport, max_calls=2, handshake_timeout_s=0.5)

            async def main(server: Any) -> None:
                async with AsyncExitStack() as stack:
                    sockets = [
                        await stack.enter_async_context(websockets.connect(server.ws_url + "ws")) for _ in range(2)
                    ]
                    assert (await refused(server.ws_url + "ws"))[0] == 503
                    async with asyncio.timeout(10):
                        for each in sockets:
                            await each.wait_closed()
                    assert {each.close_code for each in sockets} == {1008}
                    async with dialled(server.ws_url + "ws") as carrier:
                        await carrier.hang_up()

            asyncio.run(main(server))

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


class TestStreamTokens:
    def test_round_trip(self) -> None:
        tokens = StreamTokens()
        token = tokens.issue(CALL)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", token)
        assert tokens.redeem(token, "twilio") == TokenClaims(CALL, verified=True)
        unverified = tokens.issue(CALL, verified=False)
        assert tokens.redeem(unverified, "twilio") == TokenClaims(CALL, verified=False)

    def test_expires(self) -> None:
        now = [1000.0]
        tokens = StreamTokens(now=lambda: now[0])
        token = tokens.issue(CALL)
        now[0] += TOKEN_TTL_S + 1
        with pytest.raises(TokenError, match="expired"):
            tokens.redeem(token, "twilio")

    def test_other_provider(self) -> None:
        tokens = StreamTokens()
        with pytest.raises(TokenError, match="twilio"):
            tokens.redeem(tokens.issue(CALL), "plivo")

    @pytest.mark.parametrize(
        "token",
        ["", ".", "a", "a.b.c", "\u00e9.x", "x.\u00e9", "\ud800.\udfff", "\0.\0", "e30.e30", "A" * 10**6, "." * 10**6],
        ids=repr_short,
    )
    def test_forged(self, token: str) -> None:
        with pytest.raises(TokenError):
            StreamTokens().redeem(token, "twilio")

    def test_every_changed_character_is_noticed(self) -> None:
        tokens = StreamTokens()
        token = tokens.issue(CALL)
        for index, letter in enumerate(token):
            changed = token[:index] + ("A" if letter != "A" else "B") + token[index + 1 :]
            with pytest.raises(TokenError):
                tokens.redeem(changed, "twilio")
        tokens.redeem(token, "twilio")

    def test_used_ones_are_forgotten_when_they_have_expired(self) -> None:
        now = [1000.0]
        tokens = StreamTokens(now=lambda: now[0])
        for _ in range(100):
            tokens.redeem(tokens.issue(CALL), "twilio")
            now[0] += TOKEN_TTL_S
        assert len(tokens._used) <= 3

    def test_a_shared_secret_works_in_another_process(self) -> None:
        token = StreamTokens(Seals([b"s" * 32])).issue(CALL)
        assert StreamTokens(Seals([b"s" * 32])).redeem(token, "twilio").call == CALL


class TestReplayGuard:
    CALL = ("twilio", "CA1")

    def admit(self, guard: ReplayGuard, key: str, token: str | None, *, succeeds: bool = True) -> bool:
        try:
            with guard.admit(key, token, self.CALL) as succeed:
                if succeeds:
                    succeed()
        except SignatureError:
            return False
        return True

    def stream(self, guard: ReplayGuard) -> None:
        guard.stream_started(self.CALL)
        guard.stream_ended(self.CALL)

    def test_remembered_for_a_day(self) -> None:
        now = [0.0]
        guard = ReplayGuard(now=lambda: now[0])
        assert self.admit(guard, "a", "")
        assert not self.admit(guard, "a", "")
        assert not self.admit(guard, "a", "other")
        now[0] = 24 * 3600 + 1
        assert self.admit(guard, "a", "")

    def test_remembered_only_after_success(self) -> None:
        guard = ReplayGuard()
        assert self.admit(guard, "a", "1", succeeds=False)
        assert self.admit(guard, "a", "1")
        assert not self.admit(guard, "a", "1")

    def test_an_error_is_no_success(self) -> None:
        guard = ReplayGuard()
        with pytest.raises(RuntimeError), guard.admit("a", "1", self.CALL):
            raise RuntimeError
        assert self.admit(guard, "a", "1")

    def test_the_same_webhook_is_not_answered_twice_at_once(self) -> None:
        guard = ReplayGuard()
        with guard.admit("a", "1", self.CALL):
            assert not self.admit(guard, "a", "1")
            assert not self.admit(guard, "a", "2")
            assert self.admit(guard, "b", "1")

    @pytest.mark.parametrize("token", ["2", None])
    def test_good_once_more_for_each_stream_that_has_ended(self, token: str | None) -> None:
        guard = ReplayGuard()
        assert self.admit(guard, "a", token and "1")
        assert not self.admit(guard, "a", token)
        guard.stream_started(self.CALL)
        assert not self.admit(guard, "a", token)
        guard.stream_ended(self.CALL)
        assert self.admit(guard, "a", token)
        assert not self.admit(guard, "a", token and "3")
        self.stream(guard)
        assert self.admit(guard, "a", token and "3")

    def test_a_replay_is_never_good(self) -> None:
        guard = ReplayGuard()
        for token in ("1", "2", "3"):
            assert self.admit(guard, "a", token)
            self.stream(guard)
        for token in ("1", "2", "3"):
            assert not self.admit(guard, "a", token)

    def test_a_call_that_is_over_does_not_come_back(self) -> None:
        guard = ReplayGuard()
        assert self.admit(guard, "a", "1")
        self.stream(guard)
        guard.call_ended(self.CALL)
        assert not self.admit(guard, "a", "2")

    def test_a_stream_of_another_call_changes_nothing(self) -> None:
        guard = ReplayGuard()
        assert self.admit(guard, "a", "1")
        guard.stream_started(("plivo", "CA1"))
        guard.stream_ended(("plivo", "CA1"))
        assert not self.admit(guard, "a", "2")

    def test_a_call_that_was_left_long_ago_does_not_come_back(self) -> None:
        now = [0.0]
        guard = ReplayGuard(now=lambda: now[0])
        assert self.admit(guard, "a", "1")
        self.stream(guard)
        now[0] = REPEAT_WINDOW_S + 1
        assert not self.admit(guard, "a", "2")

    @pytest.mark.parametrize("token", ["sent", None])
    def test_a_captured_webhook_is_of_no_use_after_its_call(self, token: str | None) -> None:
        """Its replays stream, so that each seems to be the call coming back."""
        now = [0.0]
        guard = ReplayGuard(now=lambda: now[0])
        accepted = []
        while now[0] < 3 * 24 * 3600:
            if self.admit(guard, "a", token and f"{now[0]}"):
                accepted.append(now[0])
                self.stream(guard)
            now[0] += REPEAT_WINDOW_S - 10
        lasting = [at for at in accepted if at <= REPEAT_AGE_S]
        assert len(lasting) > 1
        # Once a day, when it is forgotten; and what it did once, it does not twice.
        assert len(accepted) - len(lasting) == 2
        assert accepted[len(lasting)] > 24 * 3600

    def test_a_call_comes_back_so_often_and_no_more(self) -> None:
        guard = ReplayGuard()
        for number in range(REPEAT_LIMIT + 1):
            assert self.admit(guard, "a", str(number))
            self.stream(guard)
        assert not self.admit(guard, "a", "x")

    def test_it_keeps_no_more_than_it_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "REPLAY_ENTRIES", 10)
        guard = ReplayGuard()
        for number in range(100):
            with guard.admit(str(number), str(number), ("twilio", str(number))) as succeed:
                succeed()
        assert max(len(guard._answered), len(guard._requests), len(guard._calls)) <= 11
        assert not guard._under_way
