"""
A language model that is not there: a server on this machine that answers as OpenAI's API does.
"""

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

ANSWER = "I can hear you well. I answer questions, and take messages."


class FakeModel:
    """
    Answers every question alike, and ends the call at a goodbye.

    Attributes:
        url: Its address, for `LLM_BASE_URL`.
        heard: What the caller has said, as the bot understood it; of every request the last.
    """

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"model": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "FakeModel":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the model says to `request`, as the content of one choice."""
        said = [message["content"] for message in request["messages"] if message["role"] == "user"]
        if not said:
            # Nothing was understood, and the bot asks what to do.
            return {"content": "Please say that again."}
        self.heard.append(said[-1])
        if "goodbye" in self.heard[-1]:
            function = {"name": "end_call", "arguments": "{}"}
            return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
        return {"content": ANSWER}


class _Handler(BaseHTTPRequestHandler):
    model: FakeModel

    def do_POST(self) -> None:
        answer = self.model.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in _stream(answer):
            self.wfile.write(event)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _stream(delta: dict[str, Any]) -> Iterator[bytes]:
    """Return the events of a streamed completion: https://platform.openai.com/docs/api-reference/chat-streaming"""
    reason = "tool_calls" if "tool_calls" in delta else "stop"
    for choice in (
        {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": reason},
    ):
        chunk = {"id": "fake", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def pytest_configure(config: pytest.Config) -> None:
    """Have the bot ask the fake model unless a test says otherwise: `*.call.toml` has no fixtures."""
    model = FakeModel().__enter__()
    config.add_cleanup(model.__exit__)
    os.environ["LLM_BASE_URL"] = model.url


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel() as model:
        yield model
