"""
The page of ``docs/transports.md`` in a real browser, with pipecat's own JavaScript client.

Needs Chromium, Node.js and the packages of ``package.json``::

    npm install --prefix tests/browser --no-package-lock --ignore-scripts

They may be installed elsewhere; ``JS_CLIENT_MODULES`` then names that ``node_modules``.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.page.chromium import PROGRAM, running
from tests.process import server_process
from tests.signals import tone
from wsvoice.audio import write_wav

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = Path(os.environ.get("JS_CLIENT_MODULES") or HERE / "node_modules")
#: What the microphone hears, all the time.
TONE_HZ = 700
#: What a page of another site may try by a developer's browser.
STRANGER = """
<script type="module">
  const tried = {};
  const socket = (path) => new Promise((resolve) => {
    const each = new WebSocket("ws://localhost:PORT" + path);
    each.onopen = () => resolve("open");
    each.onerror = () => resolve("refused");
  });
  const start = (options) => fetch("http://localhost:PORT/start", { method: "POST", body: "{}", ...options })
    .then(async (answer) => `${answer.type} ${answer.status} ${await answer.text()}`, () => "refused");
  tried.start = await start({});
  tried.json = await start({ headers: { "Content-Type": "application/json" } });
  tried.blind = await start({ mode: "no-cors" });
  tried.stream = await socket("/ws-client");
  tried.harness = await socket("/ws");
  parent.postMessage(tried, "*");
</script>
"""

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js"),
    pytest.mark.skipif(
        not (MODULES / "@pipecat-ai" / "websocket-transport").is_dir(),
        reason="pipecat's JavaScript client is not installed; this file's first lines say how",
    ),
]


def documented(name: str) -> str:
    """Return a file that the page shows."""
    text = (ROOT / "docs" / "transports.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert match, name
    return match[1]


def bundle(folder: Path, foreign: str) -> bytes:
    """Return the page's script and what watches it, as one script for the browser."""
    shutil.copy(HERE / "probe.js", folder)
    command = [
        str(MODULES / ".bin" / "esbuild"),
        "probe.js",
        "--bundle",
        "--format=iife",
        f"--define:FOREIGN={foreign}",
    ]
    environ = {**os.environ, "NODE_PATH": str(MODULES)}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@contextmanager
def site(files: dict[str, bytes], reports: queue.Queue[Any]) -> Iterator[int]:
    """Serve files, and take the report that is posted; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/javascript" if self.path.endswith(".js") else "text/html")
            self.end_headers()
            self.wfile.write(body or b"")

        def do_POST(self) -> None:
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(folder: Path, url: str, microphone: Path) -> Iterator[Path]:
    """Open a page in a browser of its own; yield what it says."""
    options = (
        "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        "--enable-logging=stderr",
    )
    with running(folder, *options, url):
        yield folder / "chromium.log"


@pytest.mark.timeout(120)
def test_a_page_talks_to_the_bot_and_strangers_do_not(tmp_path: Path) -> None:
    reports: queue.Queue[Any] = queue.Queue()
    microphone = tmp_path / "microphone.wav"
    write_wav(microphone, [tone(TONE_HZ, 4000, 48000)], 48000)
    files: dict[str, bytes] = {}
    with server_process(tmp_path, str(ROOT / "examples" / "echo.py"), "-t", "websocket") as server:
        with site(files, reports) as port:
            html, script = documented("index.html"), documented("page.js")
            assert "localhost:7860" in script
            (tmp_path / "page.js").write_text(script.replace("localhost:7860", f"localhost:{server.port}"))
            files["/"] = html.encode()
            files["/bundle.js"] = bundle(tmp_path, json.dumps(f"http://evil.example:{port}/stranger.html"))
            files["/stranger.html"] = STRANGER.replace("PORT", str(server.port)).encode()
            with browser(tmp_path, f"http://localhost:{port}/", microphone) as log_file:
                try:
                    report = reports.get(timeout=60)
                except queue.Empty:
                    pytest.fail(log_file.read_text("utf-8", "replace")[-4000:])
        log = server.logged("a client connected")
        log = server.logged("ended by")
    assert report["errors"] == []
    assert report["states"][-1] == "disconnected"
    # It hears what it said.
    heard_hz = max(report["peaks"], key=lambda hz: report["peaks"][hz])
    assert abs(int(heard_hz) - TONE_HZ) <= 25, report["peaks"]
    # Nobody else does.
    nobody = {"start": "refused", "json": "refused", "blind": "opaque 0 ", "stream": "refused", "harness": "refused"}
    assert report["strangers"] == nobody
    assert log.count("a client was given a token") == 1
    # A clean end is one.
    assert "ended by the client" in log
    assert "the client hung up" in log
    assert "the connection was lost" not in log
