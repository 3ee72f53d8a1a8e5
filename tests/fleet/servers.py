"""Two servers behind one address, and calls that come to both."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
from twilio.request_validator import RequestValidator

from tests.runner import bots
from tests.runner.carrier import FORM
from wsvoice.config import STREAM_SECRET

HOST = "bot.example.com"
AUTH_TOKEN = "wsvoice_test_auth_token_0000001"
SECRET = "0123456789abcdef" * 4


def settings(**more: Any) -> dict[str, Any]:
    """Return the settings of a server that verifies what Twilio signs for the public address."""
    credentials = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, STREAM_SECRET: SECRET, **more.pop("credentials", {})}
    return {"transport": "twilio", "proxy": HOST, "credentials": credentials, **more}


def ask(
    server: Any, call_sid: str = FORM["CallSid"], *, path: str = "", idempotency: str = "", **fields: str
) -> httpx.Response:
    """Post a webhook for the public address to one server, signed as Twilio does."""
    form = {**FORM, "CallSid": call_sid, **fields}
    signature = RequestValidator(AUTH_TOKEN).compute_signature(f"https://{HOST}/{path}", form)
    headers = {"X-Twilio-Signature": signature, "Host": HOST, "X-Forwarded-For": "192.0.2.1"}
    if idempotency:
        headers["I-Twilio-Idempotency-Token"] = idempotency
    return httpx.post(server.url + path, data=form, headers=headers, timeout=10)


def stream_url(answer: httpx.Response, server: Any) -> str:
    """Return where an answer's stream is reached at one server."""
    assert answer.status_code == 200, answer.text
    match = re.search(r'<Stream url="wss://([^/"]+)([^"]+)"', answer.text)
    assert match, answer.text
    assert match[1] == HOST
    return f"ws://{server.url.removeprefix('http://').rstrip('/')}{match[2]}"


@dataclass
class Bot:
    """An echo bot that keeps its calls."""

    calls: list[Any] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    async def __call__(self, runner_args: Any) -> None:
        self.calls.append(runner_args.call)
        self.bodies.append(runner_args.body)
        await bots.run(runner_args.transport, bots.Echo())


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
