"""Chromium without a window, told by its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """
    One page, and what it does.

    Attributes:
        events: What the browser has told of it.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = socket
        self._id = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Have the browser do something, and return its answer."""
        self._id += 1
        self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(timeout=30))
            if told.get("id") == self._id:
                assert "error" not in told, (method, told["error"])
                return dict(told["result"])
            self.events.append(told)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; a promise is waited for."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, condition: str, timeout_s: float = 15.0) -> Any:
        """Return the first value of an expression that is true."""
        return self.run(
            f"new Promise((resolve, reject) => {{ const began = performance.now(); const look = () => {{"
            # Before the page is there it may lack whatever is asked for.
            f" let value; try {{ value = ({condition}); }} catch {{ }} if (value) resolve(value);"
            f" else if (performance.now() - began > {timeout_s * 1000}) reject(new Error({json.dumps(condition)}));"
            " else setTimeout(look, 10); }; look(); })"
        )

    def open(self, file: Path) -> float:
        """Open a call's page, and return after how many seconds all of it was there."""
        began = time.monotonic()
        self.ask("Page.navigate", url=file.as_uri())
        # Until the page is there, expressions are those of the one before.
        self.until("location.protocol === 'file:' && document.documentElement.dataset.ready === 'true'", 30)
        return time.monotonic() - began

    def key(self, key: str, *, text: str = "", modifiers: int = 0) -> None:
        """Press a key."""
        about = {"key": key, "modifiers": modifiers}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text or (key if len(key) == 1 else ""), **about)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, file: Path) -> None:
        """Keep what is to be seen as a PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def faults(self) -> list[str]:
        """Return what went wrong in the page, and what its policy has refused."""
        found = [json.dumps(each["params"]) for each in self.events if each["method"] == "Runtime.exceptionThrown"]
        entries = [each["params"]["entry"] for each in self.events if each["method"] == "Log.entryAdded"]
        return found + [each["text"] for each in entries if each["level"] in ("error", "warning")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for."""
        return [
            each["params"]["request"]["url"] for each in self.events if each["method"] == "Network.requestWillBeSent"
        ]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a browser of our own while the context lasts; it writes ``chromium.log`` and ``profile`` into `folder`."""
    assert PROGRAM is not None
    command = [
        PROGRAM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--autoplay-policy=no-user-gesture-required",
        f"--user-data-dir={folder / 'profile'}",
        *options,
    ]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def chromium(folder: Path, *options: str, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """Start a browser of our own, with one empty page and more `options` of its command line."""
    own = (
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={width},{height}",
    )
    with (
        running(folder, *own, *options, "about:blank") as process,
        connect(_address(folder / "profile" / "DevToolsActivePort", process), max_size=None) as socket,
    ):
        page = Page(socket)
        page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        yield page


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    """Return where the page is told what to do; the browser writes its port into a file once it listens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and "\n" in (text := file.read_text()):
            targets = httpx.get(f"http://127.0.0.1:{text.splitlines()[0]}/json", trust_env=False).json()
            pages = [each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.02)
    raise AssertionError(f"Chromium does not start: {process.poll()}")
