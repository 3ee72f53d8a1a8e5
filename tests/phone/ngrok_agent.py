"""
Stands in for ngrok's agent: the command line, log and local API that pyngrok drives, and a tunnel that really forwards.

``PublicNetwork`` installs it, and tells it by a file what to do; see there. It keeps to these pages:

* https://ngrok.com/docs/agent/cli/
* https://ngrok.com/docs/agent/api/
* https://ngrok.com/docs/agent/config/v3/ and https://ngrok.com/docs/agent/config/v2/
* https://ngrok.com/docs/errors/
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.phone.forwarding import OFFLINE, WARNING_PAGE, PublicAddress
from tests.phone.programs import Folder

VERSION = "3.20.0"
NO_TOKEN = (
    "authentication failed: Usage of ngrok requires a verified account and authtoken.\\n\\nSign up for an account:"
    " https://dashboard.ngrok.com/signup\\n\\nERR_NGROK_4018"
)
WRONG_TOKEN = (
    "authentication failed: The authtoken you specified is properly formed, but it is invalid.\\nYour authtoken: {}"
    "\\n\\nERR_NGROK_107"
)
TOO_MANY = (
    "authentication failed: Your account is limited to 1 simultaneous ngrok agent session.\\nYou can run multiple"
    " tunnels on a single agent session using a configuration file.\\n\\nERR_NGROK_108"
)
OTHERS_DOMAIN = (
    "failed to start tunnel: This domain is reserved for another account.\nFailed to create an endpoint with the domain"
    " '{}' for the account 'Test'.\n\nERR_NGROK_320"
)

ALREADY_ONLINE = (
    "failed to start tunnel: The endpoint 'https://{}' is already online. Either\n1. stop your existing endpoint first,"
    " or\n2. start both endpoints with `--pooling-enabled` to load balance between them.\n\nERR_NGROK_334\n"
)


def log(level: str, message: str, **fields: str) -> None:
    quoted = "".join(f' {name}="{value}"' for name, value in fields.items())
    print(f't={time.strftime("%Y-%m-%dT%H:%M:%S%z")} lvl={level} msg="{message}"{quoted}', flush=True)


class Endpoint:
    """One address that the agent has opened."""

    def __init__(self, folder: Folder, name: str, port: int, domain: str) -> None:
        settings = folder.settings()
        opened_at, self.name = time.monotonic(), name

        def in_place() -> bytes | None:
            asked = folder.settings()
            if asked["warns"]:
                return WARNING_PAGE
            return OFFLINE if time.monotonic() - opened_at < asked["late_s"] else None

        self.address = PublicAddress(folder.certificate, port, port=settings["port"], in_place=in_place)
        self.upstream = f"http://localhost:{port}"
        host = domain or settings["hosts"][folder.opened() % len(settings["hosts"])]
        # A name of this machine's own is reached without the network's proxy, at the port.
        self.url = f"https://{host}:{self.address.port}" if host == "localhost" else f"https://{host}"
        folder.note(program="ngrok", url=self.url, port=self.address.port, to=port, arguments=sys.argv[1:])

    def described(self, *, v2: bool) -> dict[str, Any]:
        if v2:
            config = {"addr": self.upstream, "inspect": True}
            uri = f"/api/tunnels/{self.name}"
            return {
                "name": self.name,
                "ID": "1",
                "uri": uri,
                "public_url": self.url,
                "proto": "https",
                "config": config,
            }
        return {"name": self.name, "id": "ep_1", "url": self.url, "upstream": {"url": self.upstream}}


class Agent:
    """The agent's local API."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.endpoints: dict[str, Endpoint] = {}

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        _, _, kind, *rest = unquote(urlsplit(path).path).split("/")
        v2 = kind == "tunnels"
        if kind not in ("tunnels", "endpoints"):
            return 404, {"error_code": 100, "status_code": 404, "msg": "Resource not found", "details": {"path": path}}
        if method == "GET":
            kept = [] if self.folder.settings()["forgets"] else list(self.endpoints.values())
            return 200, {kind: [each.described(v2=v2) for each in kept], "uri": f"/api/{kind}"}
        if method == "DELETE":
            self.endpoints.pop(rest[0]).address.close()
            return 204, None
        asked = body.get("addr") if v2 else body["upstream"]["url"]
        port = int(re.sub(r".*:", "", str(asked)))
        domain = urlsplit(body.get("url", "")).netloc or body.get("domain", "")
        if domain and domain not in self.folder.settings()["domains"]:
            details = {"err": OTHERS_DOMAIN.format(domain)}
            return 502, {"error_code": 103, "status_code": 502, "msg": "failed to start tunnel", "details": details}
        if domain in self.folder.settings()["online"]:
            details = {"err": ALREADY_ONLINE.format(domain)}
            return 502, {"error_code": 103, "status_code": 502, "msg": "failed to start tunnel", "details": details}
        made = self.endpoints[body["name"]] = Endpoint(self.folder, body["name"], port, domain)
        log("info", "started tunnel", obj="tunnels", name=made.name, addr=made.upstream, url=made.url)
        return 201, made.described(v2=v2)


def handler(agent: Agent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, content = agent.answer(self.command, self.path, json.loads(self.rfile.read(length) or b"{}"))
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def token_in(config: Path) -> str:
    found = re.search(r"^\s*authtoken: *(\S+)", config.read_text(), re.MULTILINE)
    return found[1] if found else ""


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


def start(folder: Folder) -> int:
    """Run as ``ngrok start --none --log stdout``."""
    settings = folder.settings()
    folder.note(program="ngrok", arguments=sys.argv[1:])
    usual = Path(os.environ["XDG_CONFIG_HOME"]) / "ngrok" / "ngrok.yml"
    config = Path(option("--config") or usual)
    token = option("--authtoken") or os.environ.get("NGROK_AUTHTOKEN", "") or token_in(config)
    log("info", "open config file", path=str(config))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Agent(folder)))
    log("info", "starting web service", obj="web", addr=f"127.0.0.1:{server.server_port}")
    refusal = settings["refuses"]
    lock = (folder.path / "session.lock").open("w")
    if settings["authtoken"] and token != settings["authtoken"]:
        refusal = WRONG_TOKEN.format(token) if token else NO_TOKEN
    elif not refusal and settings["sessions"] == 1:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            refusal = TOO_MANY
    if refusal:
        log("eror", "failed to authenticate session", obj="tunnels.session", err=refusal)
        return 1
    log("info", "client session established", obj="tunnels.session")
    log("info", "tunnel session started", obj="tunnels.session")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()
    return 0


def main() -> int:
    """Carry out the command line."""
    if sys.argv[1:] in (["version"], ["--version"]):
        print(f"ngrok version {VERSION}")
        return 0
    if sys.argv[1:3] == ["config", "add-authtoken"]:
        path = Path(option("--config"))
        path.write_text(f'version: "3"\nagent:\n    authtoken: {sys.argv[3]}\n')
        print(f"Authtoken saved to configuration file: {path}")
        return 0
    if sys.argv[1:2] == ["start"]:
        return start(Folder.found())
    print("ERROR:  unknown command", file=sys.stderr)
    return 1
