"""
A server that places calls for whoever has its key, as ``wsvoice run`` does; what becomes of a call is for the test.

``python -m tests.phone.dial_server`` stands in for ``wsvoice run``, where `wsvoice dial` starts one: it prints its
address, and plays the call that the environment's ``PLAYED`` names. It is its own public address, unless
``PUBLIC_URL`` is another one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.phone.json_server import JsonServer, Reply

KEY = "a key of the test's"
CALL_ID = "CA5ef8732a3c49700934481addd5ce1659"


class DialServer(JsonServer):
    """
    Speaks the contract of ``/dial``.

    Attributes:
        orders: What was asked for, oldest first, without the ids that were chosen for the calls.
        ids: Those.
        hung_up: Set once a call was hung up.
        on_order: Called with this server once a call was asked for; it tells what becomes of the call. If the call is
            hung up meanwhile, it is not placed.
        on_hang_up: The same once it was hung up.
        refusal: The answer to whoever asks for a call; ``None`` places it.
        hang_up_reply: The answer to whoever hangs up.
        when_withdrawn: The answer to whoever asked for a call that is hung up meanwhile.
        limits: What the account cannot do.
        wait_s: How long a request for news waits.
    """

    def __init__(self, key: str = KEY) -> None:
        super().__init__()
        self.orders: list[dict[str, Any]] = []
        self.hung_up = threading.Event()
        self.on_order: Callable[[DialServer], None] = lambda server: None
        self.on_hang_up: Callable[[DialServer], None] = lambda server: server.end("canceled")
        self.refusal: Reply | None = None
        self.hang_up_reply: Reply = 200, {"ended": True}
        self.when_withdrawn: Reply = 409, {"error": "the call was withdrawn"}
        self.ids: list[str] = []
        self.limits: list[str] = []
        self.faults: list[Reply | None] = []
        self.wait_s = 5.0
        self._key = key
        self._events: list[dict[str, Any]] = []
        self._call: dict[str, Any] = {}
        self._has_ended = self._is_withdrawn = False
        self._news = threading.Condition()

    def tell(self, stage: str, text: str = "", *, answered_by: str | None = None, **call: Any) -> None:
        """Let something happen to the call; `call` is what is known of it from then on."""
        with self._news:
            number = len(self._events) + 1
            event = {"n": number, "at_s": number / 10, "stage": stage, "answered_by": answered_by}
            self._events.append({**event, "text": text or stage.replace("-", " ")})
            self._call |= {"stage": stage, "answered_by": answered_by or self._call.get("answered_by"), **call}
            self._news.notify_all()

    def end(self, stage: str, text: str = "", **call: Any) -> None:
        """Let the call end."""
        with self._news:
            self._has_ended = True
            self.tell(stage, text, **call)

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Reply | None:
        if path == "/healthz":
            return 200, {"status": "ok"}
        if headers.get("authorization") != f"Bearer {self._key}":
            return 401, {"error": "the key is wrong"}
        path, _, query = path.partition("?")
        if (method, path) == ("POST", "/dial"):
            return self._place(body)
        if not self.ids or path != f"/dial/{self.ids[-1]}":
            return 404, {"error": "no such call"}
        if method == "DELETE":
            self._is_withdrawn = True
            self.hung_up.set()
            self.on_hang_up(self)
            return self.hang_up_reply
        if self.faults:
            return self.faults.pop(0)
        return 200, self._tell_news(int(query.removeprefix("after=")))

    def _place(self, order: dict[str, Any]) -> Reply:
        id = order.pop("id")
        assert re.fullmatch("[A-Za-z0-9_-]{22,64}", id), id
        assert id not in self.ids
        self.orders.append(order)
        if self.refusal is not None:
            return self.refusal
        self._events, self._has_ended, self._is_withdrawn = [], False, False
        self._call = {"id": id, "call_id": CALL_ID, "provider": order.get("provider", "twilio"), "price": ""}
        self._call |= {"to": order["to"], "from": order["from"], "stage": "queued"}
        self.tell("queued")
        self.ids.append(id)
        self.on_order(self)
        if self._is_withdrawn:
            return self.when_withdrawn
        placed = {"provider": self._call["provider"], "call_id": CALL_ID, "stage": "queued"}
        return 201, {"id": id, **placed, **({"limits": self.limits} if self.limits else {})}

    def refuse_after_all(self, reply: Reply) -> None:
        """Answer whoever has asked for the call like this, and know the call all the same."""
        self._is_withdrawn, self.when_withdrawn = True, reply

    def _tell_news(self, after: int) -> dict[str, Any]:
        with self._news:
            self._news.wait_for(lambda: len(self._events) > after or self._has_ended, self.wait_s)
            return {"events": self._events[after:], "ended": self._has_ended, "call": self._call}


def conversation(server: DialServer) -> None:
    """Let a person answer, talk with the bot, and hang up."""
    server.tell("ringing")
    server.tell("answered", "answered by a human", answered_by="human")
    facts = {"duration_s": 34.2, "price": "0.0130 USD", "ended_by": "caller", "recording": "calls/CA5e.wav"}
    server.end("completed", **facts, response_s=[0.9, 0.7, 1.4], heard_s=30.5, sent_s=12.25)


def crash(server: DialServer) -> None:
    """Let the bot fail in the middle of the call, and note why where the server of a bot notes it."""
    cause = {"call": CALL_ID, "kind": "exception", "at": 1.0, "message": "KeyError: 'x'", "file": "bot.py", "line": 7}
    Path(os.environ["WSVOICE_CAUSES"]).write_text(json.dumps(cause) + "\n")
    server.end("completed", ended_by="error")


def leave_uncertain(server: DialServer) -> None:
    """Let nobody know whether the call was placed, until the provider tells of it, or the server has forgotten it."""
    content = {"error": "the call may have been placed: no answer", "hint": "wait", "kind": "uncertain"}
    server.refuse_after_all((502, content))
    heard = os.environ["PLAYED"] == "uncertain"
    later = (lambda: server.end("canceled", cause="no answer in time")) if heard else server.ids.clear
    threading.Timer(0.2, later).start()


def main() -> None:
    """Listen, say so, and go on until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print("the bot logs", sys.argv[1:], file=sys.stderr)
    with DialServer(os.environ["WSVOICE_DIAL_KEY"]) as server:
        if os.environ["PLAYED"] == "conversation":
            server.on_order = conversation
        elif os.environ["PLAYED"] == "death":
            server.on_order = lambda server: (server.tell("ringing"), threading.Timer(0.2, os._exit, (3,)).start())[0]
        elif os.environ["PLAYED"] in ("uncertain", "never placed"):
            server.on_order, server.wait_s = leave_uncertain, 0.3
        elif os.environ["PLAYED"] == "crash":
            server.on_order = crash
        server.headers = {"X-Wsvoice-Server": "this one"}
        public_url = os.environ.get("PUBLIC_URL", server.url.rstrip("/"))
        print(json.dumps({"url": server.url, "public_url": public_url}), flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main()
