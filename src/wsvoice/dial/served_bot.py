"""
Serves a bot in a second process for the time of a call.

In a test call the server is told that its public host is :data:`PUBLIC_HOST`, so that signatures, stream tokens and
``wss://`` are what they are in a real call; a public address or tunnel in the project's settings is not used. The bot
gets this process's environment, but none of the provider's real credentials. Those that verify webhooks are made for
this call, and all others are empty, so that no request can reach a real account.

In a real call the server has a public address of its own, and everything that the environment holds.

The server stops, and ends its calls, once this process has ended, even if that was killed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from wsvoice.call import Cause
from wsvoice.config import CAUSES_VARIABLE, DIAL_KEY
from wsvoice.errors import DialError, RemoteProtocolError, UsageError, WsvoiceError
from wsvoice.providers.base import Simulator
from wsvoice.providers.fields import read_object

if TYPE_CHECKING:
    from wsvoice.dial.addresses import AddressPolicy

#: The server, before its arguments.
PROGRAM = (sys.executable, "-m", "wsvoice", "run")
#: The server's public host, a name that never resolves: https://www.rfc-editor.org/rfc/rfc6761#section-6.4
PUBLIC_HOST = "bot.invalid"
#: How the server of a test call listens.
TEST_OPTIONS = ("--host", "127.0.0.1", "--port", "0", "-x", PUBLIC_HOST)
#: How long a bot may take to be imported and served.
START_TIMEOUT_S = 60.0
#: How long the server may take to stop when it is asked to.
STOP_TIMEOUT_S = 5.0
#: How many lines of the bot's stderr are kept.
KEPT_LINES = 200

_SHOWN_LINES = 15
_CAUSES_LIMIT = 64 * 1024
_LINE_LIMIT = 2000
# Settings for deployments, not for one call; an empty variable overrides `.env`.
_NOT_HERE = ("WSVOICE_NUMBER", "WSVOICE_RELOAD", "WSVOICE_WORKERS")


def bot_environment(
    environ: Mapping[str, str], provider: Simulator, credentials: Mapping[str, str], api_url: str | None
) -> dict[str, str]:
    """
    Return the environment for a served bot.

    Args:
        environ: This process's environment.
        provider: The provider that is simulated.
        credentials: The bot's credentials in this call.
        api_url: The address of the provider's fake REST API, or ``None``.
    """
    changed = dict(environ)
    # Empty rather than missing, because `.env` fills in what is missing.
    changed.update(dict.fromkeys((*provider.credential_names, *_NOT_HERE), ""))
    changed.update(credentials)
    if api_url:
        names = [name for name in provider.credential_names if name.endswith("_BASE_URL")]
        changed.update(dict.fromkeys((*names, f"{provider.name.upper()}_API_BASE_URL"), api_url))
    # The bot's output is part of the timeline, and must not wait in a buffer.
    changed["PYTHONUNBUFFERED"] = "1"
    return changed


def real_call_environment(environ: Mapping[str, str], key: str) -> dict[str, str]:
    """Return the environment for a bot that is served for a real call, which whoever has `key` may place."""
    return {**environ, **dict.fromkeys(_NOT_HERE, ""), DIAL_KEY: key, "PYTHONUNBUFFERED": "1"}


class ServedBot:
    """
    A bot and its server, while the context lasts.

    Attributes:
        url: The webhook's URL on this machine.
        public_url: The webhook's URL as signatures cover it, in a test call.
        announced_url: The public address that it has told, with a slash at its end; empty without one.
        has_told: Whether it has said itself why it did not start.
    """

    public_url = f"https://{PUBLIC_HOST}/"

    def __init__(
        self,
        bot: str,
        provider: str,
        parameters: Mapping[str, str],
        environ: Mapping[str, str],
        *,
        on_line: Callable[[str], None],
        cwd: Path | None = None,
        options: Sequence[str] = TEST_OPTIONS,
        program: Sequence[str] | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.url = ""
        self.announced_url = ""
        self.has_told = False
        self._bot = bot
        arguments = [bot, "-t", provider, *options, "--json", "--quiet", "--until-eof"]
        for name, value in parameters.items():
            arguments += ["--param", f"{name}={value}"]
        self._command = [*(program or PROGRAM), *arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="wsvoice-dial-")
        self._causes = Path(self._folder.name) / "causes.jsonl"
        self._environ = {**environ, CAUSES_VARIABLE: str(self._causes)}
        self._cwd = cwd
        self._on_line = on_line
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._stderr: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._ready: asyncio.Future[dict[str, Any]] | None = None

    async def __aenter__(self) -> Self:
        """Start the server and wait until it listens; as :meth:`start` and :meth:`ready`."""
        await self.start()
        await self.ready()
        return self

    async def start(self) -> None:
        """Start the server's process."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=dict(self._environ),
            cwd=self._cwd,
            # Closed by the end of this process, whatever ends it: the server then stops.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # So that Ctrl-C reaches the caller only, which hangs up first.
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        ready = self._ready = asyncio.get_running_loop().create_future()
        self._pumps = [
            asyncio.create_task(self._pump(process.stdout, lambda line: self._read_stdout(line, ready))),
            asyncio.create_task(self._pump(process.stderr, self._read_stderr)),
        ]

    async def ready(self) -> None:
        """
        Wait until the server listens; if it does not, it is stopped.

        Raises:
            DialError: If it does not; with what it wrote to stderr, unless it has told why.
            UsageError: If it says that the command, or a setting, is wrong.
        """
        process, ready = self._process, self._ready
        assert process is not None
        assert ready is not None
        exited = asyncio.create_task(process.wait())
        first: list[asyncio.Future[Any]] = [ready, exited]
        try:
            await asyncio.wait(first, timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                if exited.done():
                    await self._drain()
                    raise self._start_failure(process.returncode)
                raise DialError(self._with_last_lines(f"did not listen within {self._start_timeout_s:g} s"))
            self.url = ready.result()["url"]
            announced = ready.result().get("public_url")
            self.announced_url = announced if isinstance(announced, str) else ""
        except BaseException:
            await self.stop()
            raise
        finally:
            exited.cancel()

    async def __aexit__(self, *error: object) -> None:
        """Stop the server."""
        await self.stop()

    def addresses(self, *, allow_private: bool) -> AddressPolicy:
        """Return which addresses the server may name; its public host is this machine."""
        # Imports the HTTP client, for which there is time only once the process is started.
        from wsvoice.dial.addresses import AddressPolicy, HostOverride

        return AddressPolicy(self.url, allow_private=allow_private, override=HostOverride(PUBLIC_HOST, self.url))

    def causes(self, call_id: str, *, until: float | None = None) -> list[Cause]:
        """
        Return the causes that the server has noted for the call.

        Args:
            call_id: The call.
            until: Unix time of the caller's hang-up, if it hung up, which may itself be why something failed later.
        """
        noted = self._read_causes()
        return [cause for content in noted if (cause := _read_cause(content, call_id, until)) is not None]

    def _start_failure(self, code: int | None) -> WsvoiceError:
        """Return the error with which the server ended before it listened: its own, if it has told it."""
        for content in self._read_causes():
            kind, message, hint = content.get("kind"), content.get("message"), content.get("hint")
            if kind in ("usage", "failure") and isinstance(message, str):
                self.has_told = True
                hint = _for_dial(hint) if isinstance(hint, str) else None
                return UsageError(message, hint=hint) if kind == "usage" else DialError(message, hint=hint)
        error = UsageError if code == UsageError.exit_code else DialError
        return error(self._with_last_lines(f"ended with exit code {code}"))

    def _read_causes(self) -> list[dict[str, Any]]:
        # The bot may write to the file too, and the last line may be incomplete.
        with suppress(OSError), self._causes.open(encoding="utf-8", errors="replace") as file:
            return [content for line in file.read(_CAUSES_LIMIT).splitlines() if (content := _read_object(line))]
        return []

    async def exit_message(self, *, within_s: float = 0.0) -> str | None:
        """Return how the process ended, with its last output; ``None`` if it is still running."""
        process = self._process
        if process is None:
            return None
        if process.returncode is None and within_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await process.wait()
        if process.returncode is None:
            return None
        await self._drain()
        return self._with_last_lines(f"ended with exit code {process.returncode}")

    async def stop(self) -> None:
        """End the process: SIGTERM lets calls finish, a second one ends them, SIGKILL comes last."""
        process = self._process
        if process is None:
            return
        try:
            for _ in range(2):
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._stop_timeout_s / 2):
                        await process.wait()
                        break
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            # Even if this is cancelled, because asyncio complains about a process that nobody waits for.
            await process.wait()
            self._folder.cleanup()
        await self._drain()
        self._process = None

    async def _drain(self) -> None:
        """Read the rest of the output, for a second at most: a grandchild may hold the pipes open."""
        await asyncio.wait(self._pumps, timeout=1.0)
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
        rest = b""
        while chunk := await stream.read(64 * 1024):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                take(_clean(line))
            # A line without an end must not fill the memory.
            rest = rest[:_LINE_LIMIT]
        if rest:
            take(_clean(rest))

    def _read_stdout(self, line: str, ready: asyncio.Future[dict[str, Any]]) -> None:
        if not ready.done() and (told := _read_ready(line)):
            ready.set_result(told)
        elif line:
            self._on_line(line)

    def _read_stderr(self, line: str) -> None:
        if line:
            self._stderr.append(line)
            self._on_line(line)

    def _with_last_lines(self, what: str) -> str:
        lines = list(self._stderr)[-_SHOWN_LINES:]
        return "\n".join([f"the server of {self._bot} {what}" + (":" if lines else ""), *lines])


def _for_dial(hint: str) -> str:
    """Return a hint for users of ``wsvoice run`` as those of ``wsvoice dial`` can follow it."""
    hint = hint.replace("`wsvoice run ", "`wsvoice dial ")
    return re.sub(r"--(host|port|verify) (\S+)", lambda option: f"WSVOICE_{option[1].upper()}={option[2]}", hint)


def _read_object(line: str) -> dict[str, Any]:
    """Return the JSON object in a line; an empty one for any other line."""
    with suppress(RemoteProtocolError):
        return read_object(line)
    return {}


def _read_ready(line: str) -> dict[str, Any] | None:
    """Return what it says if this is the server's line, and not one that the bot printed; else ``None``."""
    told = _read_object(line)
    url = told.get("url")
    return told if isinstance(url, str) and url.startswith("http") else None


def _read_cause(content: Mapping[str, Any], call_id: str, until: float | None) -> Cause | None:
    """Return a cause if it is of this call and in time, else ``None``."""
    try:
        kind, at, line = str(content["kind"]), float(content["at"]), int(content["line"])
        message, file = str(content["message"]), str(content["file"])
    except (KeyError, TypeError, ValueError):
        return None
    # A block is noted only once it is over, or has lasted for long.
    late = until is not None and kind != "blocked" and at > until
    return None if late or content.get("call") != call_id else Cause(kind, message[:_LINE_LIMIT], file, line)


def _clean(line: bytes) -> str:
    return line[:_LINE_LIMIT].decode("utf-8", "replace").rstrip()
