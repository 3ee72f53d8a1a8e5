"""A real Asterisk as a child process: SIP on loopback, and the few modules that a call to a WebSocket needs."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.asterisk.programs import Programs, free_port

#: The context of the dial plan that SIP calls start in.
CONTEXT = "calls"
BOOT_S = 30

_MODULES = (
    "res_timing_timerfd",
    "res_sorcery_config",
    "res_sorcery_memory",
    "res_sorcery_astdb",
    "res_pjproject",
    "res_pjsip",
    "res_pjsip_session",
    "res_pjsip_pubsub",
    "res_pjsip_sdp_rtp",
    "res_pjsip_caller_id",
    "res_pjsip_endpoint_identifier_anonymous",
    "res_rtp_asterisk",
    "chan_pjsip",
    "codec_ulaw",
    "codec_alaw",
    "codec_resample",
    "bridge_simple",
    "res_http_websocket",
    "res_websocket_client",
    "chan_websocket",
    "res_audiosocket",
    "chan_audiosocket",
    "app_audiosocket",
    "pbx_config",
    "app_dial",
    "app_echo",
    "app_exec",
    "app_milliwatt",
    "app_stack",
    "app_verbose",
    "func_callerid",
    "func_channel",
    "func_env",
    "func_logic",
    "func_strings",
    "func_uri",
    "res_clioriginate",
)


@dataclass(frozen=True)
class Extension:
    """
    A number that leads to a WebSocket server.

    Attributes:
        number: What a phone dials.
        url: Where Asterisk connects.
        options: What follows the connection in ``Dial``.
        settings: Lines of the dial plan before ``Dial``, each an application.
        username: For Basic credentials; none without it.
        password: The same.
    """

    number: str
    url: str
    options: str = "c(ulaw)f(json)"
    settings: tuple[str, ...] = ()
    username: str = ""
    password: str = ""

    def dialplan(self) -> str:
        """Its lines of ``extensions.conf``."""
        steps = [*self.settings, f"Dial(WebSocket/bot{self.number}/{self.options})", "Hangup()"]
        return f"exten => {self.number},1,Answer()\n" + "".join(f" same => n,{step}\n" for step in steps)

    def client(self) -> str:
        """Its section of ``websocket_client.conf``."""
        lines = [
            f"[bot{self.number}]",
            "type=websocket_client",
            f"uri={self.url}",
            "protocols=media",
            "connection_type=per_call_config",
        ]
        if self.username:
            lines += [f"username={self.username}", f"password={self.password}"]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Pbx:
    """
    An Asterisk that has booted.

    Attributes:
        programs: Where it is installed.
        folder: Its configuration, its log and its state.
        sip_port: UDP, for phones.
        http_port: Its own HTTP server, for WebSocket clients that connect to it.
    """

    programs: Programs
    folder: Path
    sip_port: int
    http_port: int

    def sip_uri(self, number: str) -> str:
        """Return what a phone dials."""
        return f"sip:{number}@127.0.0.1:{self.sip_port}"

    def cli(self, command: str, *, timeout_s: float = 10) -> str:
        """Return what Asterisk's command line answers."""
        result = subprocess.run(
            self.programs.command("usr/sbin/asterisk", "-C", str(self.folder / "asterisk.conf"), "-nrx", command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if result.returncode:
            raise RuntimeError(f"asterisk -rx '{command}': {result.stdout}{result.stderr}")
        return result.stdout

    def configure(self, extensions: str, clients: str) -> None:
        """Replace the dial plan of the context ``calls``, and ``websocket_client.conf``."""
        _write(self.folder, extensions, clients)
        self.cli("dialplan reload")
        self.cli("module reload res_websocket_client.so")

    def serve(self, *extensions: Extension) -> None:
        """Have these extensions and no other."""
        self.configure(*_rendered(extensions))

    def channels(self) -> list[str]:
        """Return the names of the channels that are up."""
        lines = self.cli("core show channels concise").splitlines()
        return [line.partition("!")[0] for line in lines if "!" in line]

    def wait_channel(self, start: str, *, timeout_s: float = 10) -> str:
        """Wait for a channel whose name starts like this; return the name."""
        deadline = time.monotonic() + timeout_s
        while not (found := [name for name in self.channels() if name.startswith(start)]):
            assert time.monotonic() < deadline, f"there is no channel {start}\n{self.log()[-4000:]}"
            time.sleep(0.05)
        return found[0]

    def wait_idle(self, *, timeout_s: float = 10) -> None:
        """Wait until no call is left."""
        deadline = time.monotonic() + timeout_s
        while left := self.channels():
            assert time.monotonic() < deadline, f"still up: {left}\n{self.log()[-4000:]}"
            time.sleep(0.1)

    def log(self) -> str:
        """What it has logged until now."""
        path = self.folder / "full.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


@contextmanager
def asterisk(programs: Programs, folder: Path, *extensions: Extension) -> Iterator[Pbx]:
    """
    Run an Asterisk until the context ends.

    Args:
        programs: Where it is installed.
        folder: An empty folder for its files. Its path is short: a Unix socket's may have 107 bytes.
        extensions: What it has at first.
    """
    pbx = Pbx(programs, folder, sip_port=free_port(), http_port=free_port())
    _write_base(pbx)
    _write(folder, *_rendered(extensions))
    arguments = ("-f", "-n", "-C", str(folder / "asterisk.conf"))
    with programs.running(folder / "console.log", "usr/sbin/asterisk", *arguments) as process:
        _wait_booted(pbx, process)
        yield pbx


def _wait_booted(pbx: Pbx, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BOOT_S
    while True:
        try:
            pbx.cli("core waitfullybooted", timeout_s=BOOT_S)
        except RuntimeError:  # Its control socket is not there yet.
            said = (pbx.folder / "console.log").read_text("utf-8", "replace")[-2000:] + pbx.log()[-2000:]
            assert process.poll() is None, f"Asterisk has ended:\n{said}"
            assert time.monotonic() < deadline, f"Asterisk did not boot:\n{said}"
            time.sleep(0.1)
        else:
            return


def _rendered(extensions: Sequence[Extension]) -> tuple[str, str]:
    return "".join(each.dialplan() for each in extensions), "\n".join(each.client() for each in extensions)


def _write(folder: Path, extensions: str, clients: str) -> None:
    (folder / "extensions.conf").write_text(f"[general]\n\n[{CONTEXT}]\n{extensions}")
    (folder / "websocket_client.conf").write_text(clients)


def _write_base(pbx: Pbx) -> None:
    folder, share = pbx.folder, pbx.programs.folder / "usr/share/asterisk"
    # Below the ports that the system gives to clients. A range that another Asterisk has too does no harm.
    first_rtp = random.randrange(16_384, 30_000, 2)
    files = {
        "asterisk.conf": f"""
            [directories]
            astcachedir => {folder}
            astetcdir => {folder}
            astmoddir => {pbx.programs.libraries}/asterisk/modules
            astvarlibdir => {folder}
            astdbdir => {folder}
            astkeydir => {folder}
            astdatadir => {share}
            astagidir => {share}/agi-bin
            astspooldir => {folder}
            astrundir => {folder}
            astlogdir => {folder}
            astsbindir => {pbx.programs.folder}/usr/sbin
            [options]
            verbose = 3
            """,
        "logger.conf": """
            [general]
            dateformat = %F %T.%3q
            [logfiles]
            full.log => notice,warning,error,verbose
            """,
        "modules.conf": "[modules]\nautoload = no\n" + "".join(f"load = {each}.so\n" for each in _MODULES),
        "http.conf": f"""
            [general]
            enabled = yes
            bindaddr = 127.0.0.1
            bindport = {pbx.http_port}
            """,
        "rtp.conf": f"""
            [general]
            rtpstart = {first_rtp}
            rtpend = {first_rtp + 400}
            """,
        "pjsip.conf": f"""
            [udp]
            type = transport
            protocol = udp
            bind = 127.0.0.1:{pbx.sip_port}
            [anonymous]
            type = endpoint
            context = {CONTEXT}
            disallow = all
            allow = ulaw,alaw
            direct_media = no
            dtmf_mode = rfc4733
            """,
    }
    for name, text in files.items():
        lines = (line.strip() for line in text.strip().splitlines())
        (folder / name).write_text("\n".join(lines) + "\n")
