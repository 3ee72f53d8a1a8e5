"""Web pages of other sites, proxies and odd hosts: who counts as local, on every transport."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from twilio.request_validator import RequestValidator

from tests.attacks import raw_http
from tests.attacks.http_client import web
from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import FORM
from tests.runner.test_single_client import Served, echo
from tests.runner.test_single_client import served as single_client
from wsvoice.config import START_KEY, RunConfig
from wsvoice.providers import PROVIDERS
from wsvoice.runner import requests

KEY = "correct-horse"
TOKEN = "12345"
LOCAL_PAGES = ("http://localhost:5173", "http://127.0.0.1:3000", "http://[::1]:8080", "https://dev.localhost")
FOREIGN_PAGES = (
    "https://evil.example",
    "http://localhost.evil.example:7860",
    "null",
    "http://[",
    "http://localhost@evil.example",
    "https://evil.example/#http://localhost",
    "file://",
    "http://127.0.0.1.nip.io",
    "http://localhost\thttp://evil.example",
    "chrome-extension://localhost",
)
#: What proxies, tunnels and content delivery networks send on.
PROXIED = (
    "Forwarded: for=203.0.113.9",
    "Via: 1.1 vegur",
    "X-Real-IP: 203.0.113.9",
    "CF-Connecting-IP: 203.0.113.9",
    "CF-Ray: 8f0",
    "True-Client-IP: 203.0.113.9",
    "X-Client-IP: 203.0.113.9",
    "Fastly-Client-IP: 203.0.113.9",
    "X-Cluster-Client-IP: 203.0.113.9",
    "Fly-Client-IP: 203.0.113.9",
    "X-Envoy-External-Address: 203.0.113.9",
    "Ngrok-Trace-Id: 1",
    "X-Original-Host: bot.example",
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Proto: javascript",
    "X-Forwarded-Host: bot.example",
    "X-Amzn-Trace-Id: Root=1",
    "X-Appengine-User-IP: 203.0.113.9",
    "X-Azure-ClientIP: 203.0.113.9",
    "Tailscale-User-Login: somebody",
    "Proxy-Connection: keep-alive",
)
BAD_HOSTS = (
    "[",
    "]",
    "[::1",
    "localhost:port",
    "localhost:99999999",
    "localhost/../",
    "localhost?x",
    "localhost#x",
    "user@localhost",
    "localhost localhost",
    "localhost,evil.example",
    "http://localhost",
    "-",
    ".",
    "",
    "\xff\xfe",
    "a" * 3000,
    "evil.example\\@localhost",
)

Serve = Callable[..., Any]


@pytest.fixture(params=["websocket", "twilio", None])
def served(request: pytest.FixtureRequest, serve: Serve) -> Any:
    """Return a server on this machine, and where its WebSocket is."""
    server = serve(bots.echo, transport=request.param)
    return server, "/ws-client" if request.param == "websocket" else "/ws"


class TestPages:
    def test_this_machines_own_pages_are_local(self, served: Any) -> None:
        server, path = served
        for page in LOCAL_PAGES:
            assert raw_http.upgrade(server.url, path, "Host: localhost", f"Origin: {page}") == 101, page

    @pytest.mark.parametrize("transport", ["asterisk", None])
    def test_a_stream_with_a_password_comes_in_by_any_path_but_from_no_page(
        self, serve: Serve, transport: str | None
    ) -> None:
        secrets = {"ASTERISK_PASSWORD": "s3cret", "TWILIO_AUTH_TOKEN": "x" * 32}
        server = serve(bots.echo, transport=transport, proxy="bot.example", credentials=secrets)
        right, wrong = (
            f"Authorization: Basic {b64encode(each).decode()}" for each in (b"wsvoice:s3cret", b"wsvoice:x")
        )
        host = "Host: bot.example"
        for path in ("/ws", "/ws/asterisk", "/ws/asterisk/anything"):
            assert raw_http.upgrade(server.url, path, host, right) == 101, path
            # Some programs name what they dial.
            assert raw_http.upgrade(server.url, path, host, right, "Origin: https://bot.example") == 101, path
            assert raw_http.upgrade(server.url, path, host, right, "Origin: https://evil.example") == 403, path
            assert raw_http.upgrade(server.url, path, host, wrong) == 403, path
            assert raw_http.upgrade(server.url, path, host) == 403, path

    def test_pages_of_other_sites_reach_no_stream(self, served: Any) -> None:
        server, path = served
        for page in FOREIGN_PAGES:
            assert raw_http.upgrade(server.url, path, "Host: localhost", f"Origin: {page}") == 403, page
        both = ("Origin: http://localhost", "Origin: http://evil.example")
        assert raw_http.upgrade(server.url, path, "Host: localhost", *both) in (400, 403)
        # A page whose name was made to lead here, after it was loaded from elsewhere.
        assert raw_http.upgrade(server.url, path, "Host: evil.example:7860") == 403
        assert not server.lines("Traceback")

    def test_start_gives_them_no_token(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket")
        for page in FOREIGN_PAGES:
            # Such a body needs no leave from the server before the browser sends it.
            headers = ("Host: localhost", f"Origin: {page}", "Content-Type: text/plain")
            status, answer = raw_http.request(server.url, "POST /start HTTP/1.1", *headers, body=b"{}")
            assert status == 403, page
            assert b"token" not in answer
            assert b"access-control" not in answer.lower()
        assert server.lines("start refused (403)", "PIPECAT_ALLOWED_ORIGINS", "https://evil.example")

    def test_start_may_be_read_by_this_machines_own_pages(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket")
        for page in LOCAL_PAGES:
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-own"}
            before = web.options(server.url + "start", headers={"Origin": page, **asked})
            assert before.status_code == 200
            assert before.headers["Access-Control-Allow-Origin"] == page
            assert "x-own" in before.headers["Access-Control-Allow-Headers"]
            answer = web.post(server.url + "start", json={}, headers={"Origin": page})
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == page
            assert answer.headers["Vary"] == "Origin"
        foreign = web.options(server.url + "start", headers={"Origin": FOREIGN_PAGES[0], **asked})
        assert foreign.status_code == 403
        assert not [name for name in foreign.headers if name.startswith("access-control")]

    def test_pages_that_the_developer_has_allowed(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIPECAT_ALLOWED_ORIGINS", "https://page.example")
        server = serve(bots.echo, transport="websocket")
        answer = web.post(server.url + "start", json={}, headers={"Origin": "https://page.example"})
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
        assert raw_http.upgrade(server.url, "/ws-client", "Host: localhost", "Origin: https://page.example") == 101
        assert web.post(server.url + "start", json={}, headers={"Origin": "https://evil.example"}).status_code == 403

    def test_the_key_opens_start_and_the_token_the_stream(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket", credentials={START_KEY: KEY})
        headers = {"Origin": "https://evil.example", "Authorization": f"Bearer {KEY}"}
        answer = web.post(server.url + "start", json={}, headers=headers)
        assert answer.status_code == 200
        assert "Access-Control-Allow-Origin" not in answer.headers
        path = f"/ws-client?token={answer.json()['token']}"
        assert raw_http.upgrade(server.url, path, "Host: localhost", "Origin: https://evil.example") == 101

    def test_the_servers_own_page_on_a_public_address(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket", proxy="bot.example", credentials={START_KEY: KEY})
        headers = {"Authorization": f"Bearer {KEY}"}
        for page, allowed in (("https://bot.example", True), ("http://localhost:5173", True), ("https://x.ex", False)):
            answer = web.post(server.url + "start", json={}, headers={**headers, "Origin": page})
            assert answer.status_code == 200
            assert ("Access-Control-Allow-Origin" in answer.headers) is allowed
        assert web.post(server.url + "start", json={}, headers={"Origin": "https://bot.example"}).status_code == 403

    def test_a_desk_on_this_machine(self) -> None:
        def knock(server: Served) -> None:
            for page in FOREIGN_PAGES:
                assert raw_http.upgrade(server.url, "/", "Host: localhost", f"Origin: {page}") == 403, page
            for page in LOCAL_PAGES:
                assert raw_http.upgrade(server.url, "/", "Host: localhost", f"Origin: {page}") == 101, page
            assert raw_http.upgrade(server.url, "/", "Host: localhost") == 101
            assert server.lines("https://evil.example")

        at_a_single_client(knock)

    def test_a_desk_whose_bot_has_allowed_a_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def knock(server: Served) -> None:
            assert raw_http.upgrade(server.url, "/", "Host: localhost", "Origin: https://page.example") == 101
            assert raw_http.upgrade(server.url, "/", "Host: localhost", "Origin: https://evil.example") == 403

        monkeypatch.setenv("PIPECAT_ALLOWED_ORIGINS", "https://page.example")
        at_a_single_client(knock)


def at_a_single_client(knock: Callable[[Served], None]) -> None:
    """Serve one client at a time on a port of this machine, while a stranger does what `knock` does."""

    async def main() -> None:
        async with single_client(echo) as server:
            await asyncio.to_thread(knock, server)

    asyncio.run(main())


class TestProxies:
    def test_whatever_a_proxy_says_is_public(self, served: Any) -> None:
        server, path = served
        assert raw_http.upgrade(server.url, path, "Host: localhost:7860") == 101
        for header in PROXIED:
            assert raw_http.upgrade(server.url, path, "Host: localhost:7860", header) == 403, header

    def test_start_too(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket")
        for header in PROXIED:
            status, answer = raw_http.request(server.url, "POST /start HTTP/1.1", "Host: localhost", header)
            assert status == 403, header
            assert START_KEY.encode() in answer
        # What nginx says to an upstream of which nobody told it more.
        assert raw_http.request(server.url, "POST /start HTTP/1.0", "Host: localhost:7860")[0] == 403

    @pytest.mark.parametrize("headers", [(), ("X-Real-IP: 203.0.113.9",)])
    def test_behind_a_reverse_proxy(self, serve: Serve, headers: tuple[str, ...]) -> None:
        server = serve(bots.echo, transport="websocket")
        with reverse_proxy(server.url, *headers) as url:
            assert raw_http.request(url, "POST /start HTTP/1.1", "Host: bot.example", "Accept: */*")[0] == 403
            if headers:
                assert raw_http.upgrade(url, "/ws-client", "Host: bot.example") == 403
        assert web.post(server.url + "start", json={}).status_code == 200

    @pytest.mark.parametrize("name", PROVIDERS)
    @pytest.mark.parametrize("scheme", ["https", "javascript"])
    def test_an_address_that_nobody_configured_is_not_guessed(self, serve: Serve, name: str, scheme: str) -> None:
        """A tunnel that was opened by hand: what it says chooses no address, and providers refuse ``ws://``."""
        server = serve(bots.echo, transport=name, verify="off")
        provider = load_provider(name)
        if not provider.has_webhook:
            pytest.skip(f"{provider.title} sends no webhooks")
        call = provider.new_call(from_number="+15550100001", to_number="+15550100002", parameters={}, seed=bytes(32))
        for path, headers, words in (
            ("", {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": scheme}, "-x evil.example"),
            (name, {"Host": "a-b.ngrok-free.app", "X-Forwarded-Proto": scheme}, "-x a-b.ngrok-free.app"),
            ("", {"Host": "bot.example:7860"}, "-x bot.example"),
            ("", {"X-Forwarded-For": "203.0.113.9"}, "by a proxy, which this server does not know; start it with -x"),
        ):
            asked = provider.webhook(call, server.url + path)
            sent = {**asked.headers, **headers}
            answer = web.request(asked.method, asked.url, content=asked.body, headers=sent)
            assert answer.status_code == 403, headers
            assert "/ws/" not in answer.text
            assert not any(each.split(":")[0] in answer.text for each in headers.values())
            assert len(server.lines("webhook refused (403)", words)) == 1
        asked = provider.webhook(call, server.url)
        answer = web.request(asked.method, asked.url, content=asked.body, headers=asked.headers)
        assert f"{server.ws_url}ws/{name}/" in answer.text.replace("\\/", "/")

    @pytest.mark.parametrize("name", ["exotel", "telnyx"])
    def test_no_address_is_guessed_where_the_signature_covers_none(self, serve: Serve, name: str) -> None:
        carrier, secrets = load_provider(name).test_credentials(bytes(range(32)))
        provider = load_provider(name, carrier)
        server = serve(bots.echo, transport=name, credentials=secrets)
        call = provider.new_call(from_number="+15550100001", to_number="+15550100002", parameters={}, seed=bytes(32))
        asked = provider.sign(provider.webhook(call, server.url), now=time.time())
        for headers, status in (({"Host": "a-b.ngrok-free.app", "X-Forwarded-Proto": "https"}, 403), ({}, 200)):
            sent = {**asked.headers, **headers}
            answer = web.request(asked.method, asked.url, content=asked.body, headers=sent)
            assert answer.status_code == status
            assert ("/ws/" in answer.text) == (status == 200)

    def test_without_a_secret_the_way_out_names_the_address_too(self, serve: Serve) -> None:
        server = serve(bots.echo)
        assert web.post(server.url, data=FORM, headers={"Host": "a-b.ngrok-free.app"}).status_code == 403
        assert server.lines("webhook refused (403)", "TWILIO_AUTH_TOKEN", "-x and the public host", "--verify off")

    def test_another_machine_may_ask_directly_where_nothing_is_verified(self) -> None:
        """Containers of one machine, or a local network: no proxy, no TLS, and no telephone company."""

        def came(peer: str, host: str, *headers: tuple[bytes, bytes], **settings: Any) -> str | None:
            scope = {
                "type": "http",
                "client": (peer, 5),
                "server": ("10.0.0.7", 7860),
                "headers": [(b"host", host.encode()), *headers],
            }
            return requests.unknown_host(Request(scope), RunConfig(host="0.0.0.0", **settings))

        assert came("10.0.0.2", "bot:7860", verify="off") is None
        assert came("10.0.0.2", "bot:7860") == "bot:7860"
        assert came("10.0.0.2", "10.0.0.7:7860") is None
        assert came("10.0.0.2", "bot:7860", (b"x-forwarded-for", b"203.0.113.9"), verify="off") == "bot:7860"
        assert came("127.0.0.1", "bot:7860", verify="off") == "bot:7860"
        assert came("10.0.0.2", "bot:7860", proxy="bot.example") is None

    @pytest.mark.parametrize("how", ["X-Forwarded-Host", "Host"])
    def test_they_do_not_choose_the_address_that_is_verified(self, serve: Serve, how: str) -> None:
        server = serve(bots.echo, credentials={"TWILIO_AUTH_TOKEN": TOKEN})
        for url in ("https://other.example/", "http://other.example/"):
            signature = RequestValidator(TOKEN).compute_signature(url, FORM)
            headers = {"X-Twilio-Signature": signature, how: "other.example", "X-Forwarded-Proto": url[:5].strip(":")}
            assert web.post(server.url, data=FORM, headers=headers).status_code == 403
        # Somebody who opened a tunnel by hand learns what to do.
        assert len(server.lines("webhook refused (403)", "-x other.example")) == 2
        # Somebody who signs nothing is told nothing of the kind.
        unsigned = {"X-Twilio-Signature": "x", how: "evil.example"}
        assert web.post(server.url, data=FORM, headers=unsigned).status_code == 403
        assert not server.lines("-x evil.example")
        signed = {"X-Twilio-Signature": RequestValidator(TOKEN).compute_signature(server.url, FORM)}
        assert web.post(server.url, data=FORM, headers=signed).status_code == 200


class TestHosts:
    def test_no_bad_host_is_an_error_of_ours(self, serve: Serve) -> None:
        for transport in ("websocket", "twilio"):
            server = serve(bots.echo, transport=transport)
            path = "/ws-client" if transport == "websocket" else "/ws"
            for host in BAD_HOSTS:
                for line in ("POST /start", "POST /", "POST /twilio/", "GET /healthz", "POST /nowhere/"):
                    status, _ = raw_http.request(server.url, f"{line} HTTP/1.1", f"Host: {host}")
                    assert status < 500, (line, host)
                status, answer = raw_http.request(server.url, "POST /start HTTP/1.1", f"Host: {host}", body=b"{}")
                assert b'"token"' not in answer, host
                assert raw_http.upgrade(server.url, path, f"Host: {host}") in (0, 400, 403), host
            assert not server.lines("Traceback")

    def test_one_host_and_no_more(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket")
        for headers in ((), ("Host: localhost", "Host: evil.example"), ("Host: localhost", "Host: localhost")):
            assert raw_http.request(server.url, "POST /start HTTP/1.1", *headers)[0] in (400, 403), headers
            assert raw_http.upgrade(server.url, "/ws-client", *headers) in (400, 403), headers
        assert not server.lines("Traceback")

    def test_odd_targets(self, serve: Serve) -> None:
        server = serve(bots.echo, transport="websocket")
        for target in (
            "http://evil.example/start",
            "http://[/start",
            "//evil.example/start",
            "*",
            "/start?\xff",
            "/start#x",
            "/%00",
            "/%ff",
            "/ws-client/%2f..%2f",
            "http://",
            "evil.example:80",
        ):
            for method in ("POST", "OPTIONS", "GET"):
                status, answer = raw_http.request(server.url, f"{method} {target} HTTP/1.1", "Host: localhost")
                assert status < 500, (method, target)
                assert b"wsUrl" not in answer or b"evil" not in answer
            assert raw_http.upgrade(server.url, target, "Host: localhost") in (0, 101, 400, 403, 404), target
        assert not server.lines("Traceback")


@contextmanager
def reverse_proxy(upstream: str, *headers: str) -> Iterator[str]:
    """
    Run a proxy that speaks to its upstream as nginx does: another ``Host``, HTTP/1.0, and what it was told to add.

    https://nginx.org/en/docs/http/ngx_http_proxy_module.html
    """
    host, port = httpx.URL(upstream).host, httpx.URL(upstream).port or 80
    opened: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.strip().split("\r\n")
        upgrading = "upgrade: websocket" in head.lower()
        kept = [each for each in fields if not each.lower().startswith(("host:", "connection:", "accept-encoding:"))]
        line = line if upgrading else line.replace("HTTP/1.1", "HTTP/1.0")
        own = [f"Host: localhost:{port}", "Connection: upgrade" if upgrading else "Connection: close", *headers]
        there_reader, there = await asyncio.open_connection(host, port)
        there.write("\r\n".join([line, *own, *kept, "", ""]).encode("latin-1"))
        while piece := await there_reader.read(65536):
            writer.write(piece)
        for each in (there, writer):
            each.close()
            await each.wait_closed()

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with server:
            opened.put((f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", loop, stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    url, loop, stop = opened.get(timeout=10)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
