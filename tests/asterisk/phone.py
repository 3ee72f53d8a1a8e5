"""A real telephone: baresip, with a WAV file as its microphone and another for what it hears."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.asterisk.programs import Programs, free_port
from wsvoice.audio import write_wav

RATE = 8000
#: How long anything may take on a busy machine.
PATIENCE_S = 30

_MODULES = ("account", "g711", "aufile", "menu", "ctrl_tcp")


#: Other programs look for free ports at the same time.
_TRIES = 5


@dataclass
class Phone:
    """
    A telephone that may call once.

    Attributes:
        folder: Its configuration, sound and log.
        process: baresip.
        events: What it reported until now, in order, such as ``CALL_ESTABLISHED``.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    _control: socket.socket
    events: list[dict[str, Any]] = field(default_factory=list)
    _answers: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def dial(self, uri: str) -> None:
        """Call a SIP address; the call is not answered yet."""
        self.command("dial", uri)

    def wait(self, event: str, *, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for an event, which may be there already, and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._event(event) is not None, timeout_s)
            found = self._event(event)
        assert found is not None, f"no {event} in {timeout_s} s: {[each['type'] for each in self.events]}\n{self.log()}"
        return found

    def call(self, uri: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Call a SIP address and wait until it is answered."""
        self.dial(uri)
        self.wait("CALL_ESTABLISHED", timeout_s=timeout_s)

    def press(self, digits: str) -> None:
        """Press keys, sent as RFC 4733 telephone events."""
        for digit in digits:
            self.command("sndcode", digit)

    def hang_up(self) -> None:
        """End the call."""
        self.command("hangup")
        self.wait("CALL_CLOSED")

    def heard(self) -> bytes:
        """Return what it has heard until now, as 8 kHz PCM. What came just before the end may lack a few frames."""
        path = self.folder / "heard.wav"
        # The header gets its length when the call has ended.
        return path.read_bytes()[44:] if path.exists() else b""

    def log(self) -> str:
        """What baresip printed until now."""
        return (self.folder / "baresip.log").read_text("utf-8", "replace")[-4000:]

    def command(self, name: str, parameters: str = "", *, timeout_s: float = PATIENCE_S) -> str:
        """Have baresip do something; return its answer."""
        text = json.dumps({"command": name, "params": parameters, "token": name})
        self._control.sendall(f"{len(text)}:{text},".encode())
        answer = self._answers.get(timeout=timeout_s)
        assert answer["ok"], f"{name} {parameters}: {answer}\n{self.log()}"
        return str(answer["data"])

    def _event(self, name: str) -> dict[str, Any] | None:
        return next((each for each in self.events if each["type"] == name), None)

    def _read(self) -> None:
        """Sort what comes from baresip, a netstring for each message, until it ends."""
        with self._control.makefile("rb") as stream:
            while digits := _until_colon(stream):
                message = json.loads(stream.read(int(digits)))
                stream.read(1)
                if not message.get("event"):
                    self._answers.put(message)
                    continue
                with self._changed:
                    self.events.append(message)
                    self._changed.notify_all()


@contextmanager
def phone(programs: Programs, folder: Path, microphone: bytes, *, number: str = "+15550100") -> Iterator[Phone]:
    """
    Have a telephone until the context ends.

    Args:
        programs: Where baresip is installed.
        folder: An empty folder for its files.
        microphone: What it says from when the call is answered, as 8 kHz PCM. Nothing comes after its end: silence is
            part of it.
        number: Its own.
    """
    write_wav(folder / "microphone.wav", [microphone], RATE)
    log = folder / "baresip.log"
    with ExitStack() as stack:
        process, control = _start(programs, folder, number, log, stack)
        handset = Phone(folder, process, control)
        reader = threading.Thread(target=handset._read, daemon=True)
        reader.start()
        try:
            yield handset
        finally:
            control.shutdown(socket.SHUT_RDWR)
            reader.join(5)


class _PortTaken(Exception):
    """Another telephone has got the port meanwhile."""


def _start(
    programs: Programs, folder: Path, number: str, log: Path, stack: ExitStack
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    for _ in range(_TRIES):
        control_port = free_port()
        _configure(programs, folder, number, control_port)
        with ExitStack() as trial:
            command = ("usr/bin/baresip", "-4", "-f", str(folder))
            process = trial.enter_context(programs.running(log, *command))
            try:
                control = trial.enter_context(_connected(control_port, process, log))
            except _PortTaken:
                continue
            stack.enter_context(trial.pop_all())
            return process, control
    raise AssertionError("no telephone gets a port")


def _configure(programs: Programs, folder: Path, number: str, control_port: int) -> None:
    sip_port = free_port()
    lines = [
        "poll_method epoll",
        f"sip_listen 127.0.0.1:{sip_port}",
        "net_interface 127.0.0.1",
        "call_max_calls 1",
        f"audio_path {folder}",
        f"audio_source aufile,{folder}/microphone.wav",
        f"audio_player aufile,{folder}/heard.wav",
        f"ausrc_srate {RATE}",
        f"auplay_srate {RATE}",
        "ausrc_channels 1",
        "auplay_channels 1",
        # A busy machine delays packets; what is late is still to be heard, in order.
        "audio_buffer 100-1000",
        "jitter_buffer_type off",
        "statmode_default off",
        f"ctrl_tcp_listen 127.0.0.1:{control_port}",
        f"module_path {programs.folder}/usr/lib/baresip/modules",
    ]
    lines += [f"module{'_app' if each in ('account', 'menu', 'ctrl_tcp') else ''} {each}.so" for each in _MODULES]
    (folder / "config").write_text("\n".join(lines) + "\n")
    (folder / "accounts").write_text(f"<sip:{number}@127.0.0.1:{sip_port}>;regint=0;audio_codecs=PCMU;ptime=20\n")
    (folder / "contacts").write_text("")


def _connected(port: int, process: subprocess.Popen[bytes], log: Path) -> socket.socket:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            control = socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            text = log.read_text("utf-8", "replace")[-2000:]
            if process.poll() is not None and "Address already in use" in text:
                raise _PortTaken from None
            assert process.poll() is None, f"baresip has ended:\n{text}"
            assert time.monotonic() < deadline, f"baresip did not start:\n{text}"
            time.sleep(0.05)
        else:
            control.settimeout(None)
            return control


def _until_colon(stream: Any) -> bytes:
    text = b""
    while (byte := stream.read(1)) not in (b":", b""):
        text += byte
    return text
