"""A small HTTP server of the tests' own, in a thread, that answers JSON with JSON."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

#: A status and an object; bytes are sent as they are.
Reply = tuple[int, dict[str, Any] | bytes]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that is gone before its answer, as one that was interrupted."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class JsonServer:
    """
    Listens on a port of this machine while the context lasts.

    Attributes:
        url: Its address, with a slash at its end.
        asked: Each request, as ``GET /path?query``.
        headers: Further headers of each answer.
    """

    def __init__(self) -> None:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                server.asked.append(f"{self.command} {self.path}")
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = server.reply(self.command, self.path, headers, body)
                if reply is None:
                    # Without an answer, as a process that dies.
                    self.close_connection = True
                    return
                status, content = reply
                sent = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Reply | None:
        """Return the answer; ``None`` closes the connection without one."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Listen."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to listen."""
        self.close()

    def close(self) -> None:
        """Stop to listen; a second time does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
