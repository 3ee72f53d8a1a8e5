"""A service that transcribes, with OpenAI's API: it knows tones by their frequency."""

from __future__ import annotations

import io
import json
import threading
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


class Service(ThreadingHTTPServer):
    """
    Answers with the words of the tone that is heard.

    Attributes:
        words: What is answered, by the frequency in Hz.
        status: The status of every answer.
        body: What is answered instead, or ``None``.
        gate: Answers wait until it is set.
        asked: The fields of each request's form, and the seconds of its sound.
        paths, keys: Its path, and its header Authorization.
    """

    daemon_threads = True

    def __init__(self, words: dict[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.words = words
        self.status = 200
        self.body: bytes | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[dict[str, str], float]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        service: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = message_from_bytes(
            b"Content-Type: %b\r\n\r\n" % self.headers["Content-Type"].encode() + body, policy=HTTP
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        sound = parts.pop("file").get_payload(decode=True)
        with wave.open(io.BytesIO(sound)) as file:
            rate, pcm = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
        service.asked.append(({name: part.get_content().strip() for name, part in parts.items()}, len(pcm) / rate))
        service.paths.append(self.path)
        service.keys.append(self.headers.get("Authorization"))
        peak = np.abs(np.fft.rfft(pcm)).argmax() * rate / len(pcm)
        text = next((words for hz, words in service.words.items() if abs(hz - peak) < 30), f"{peak:.0f} Hz?")
        answer = service.body if service.body is not None else json.dumps({"text": text}).encode()
        service.gate.wait(20)
        self.send_response(service.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def transcribing(words: dict[int, str]) -> Iterator[Service]:
    """Serve it in a thread."""
    with Service(words) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()
