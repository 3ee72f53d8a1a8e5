"""
Upgrade in place (SIGUSR2): the server's own command line is started again, and takes over without losing a call.

The new process is started in the same folder, with the same arguments and environment, and with the code that is on
disk by then. It inherits one end of a channel, by which everything else comes: first the listening sockets; once it is
ready to serve, what the running server knows of announced calls, used tokens and answered webhooks. Between the two
nobody accepts, and whoever connects waits in the sockets' queue for some milliseconds. From then on the running server
finishes its calls, and tells the new one what it still hears of them. Secrets go by the channel only: command lines and
environments can be read by others.

If the new process fails, at whatever point, the running server goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from loguru import logger
from starlette.responses import PlainTextResponse, Response

from wsvoice.call import Call, plural
from wsvoice.errors import ServerError
from wsvoice.providers.base import CallUpdate
from wsvoice.runner import requests
from wsvoice.runner.launch import CHANNEL_VARIABLE, HEAD, Launch, frame, send_sockets
from wsvoice.runner.limits import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

    from wsvoice.config import RunConfig
    from wsvoice.runner.switchboard import Switchboard

#: How long the new process may take until it is ready: it imports the bot.
START_TIMEOUT_S = 120.0
#: How long it may take to serve once it has been told everything, and how long it waits for that.
TAKE_TIMEOUT_S = 10.0
#: How long requests that are being answered may take before the rest is handed over without them.
ANSWER_TIMEOUT_S = 0.3
#: How long a process that failed may take to end by itself.
END_TIMEOUT_S = 2.0
#: How long the other process may take to answer a request that is passed on; longer than a question for events is open.
RELAY_TIMEOUT_S = 30.0
_LOOK_S = 0.05


class Part(Protocol):
    """What a server that takes over has to know: one of the things that hold it."""

    def export(self) -> dict[str, Any]:
        """Return it as JSON has it."""

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take it in; keys that are missing have nothing to say."""


class Serving(Protocol):
    """The server that is upgraded, as far as it is concerned."""

    async def stop_accepting(self) -> None:
        """Accept no connection; those that there are go on."""

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections again."""

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""

    @property
    def application(self) -> Any:
        """What answers requests."""

    def hand_over(self, pid: int) -> None:
        """Finish the calls, and end: another process takes the new ones."""


def parts_of(switchboard: Switchboard) -> dict[str, Part]:
    """Return everything that a server which takes over has to know, by its name."""
    clients: dict[str, Part] = {} if switchboard.clients is None else {"clients": switchboard.clients}
    return {
        **clients,
        "seals": switchboard.fleet.seals,
        "tokens": switchboard.auth.tokens,
        "replays": switchboard.auth.replays,
        "capacity": switchboard.capacity,
        "numbers": switchboard.numbers,
        "minutes": switchboard.minutes,
        "announced": _Announced(switchboard),
    }


class _Announced:
    """The announced calls, for streams that come without a token, and their webhooks' traces."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard

    def export(self) -> dict[str, Any]:
        traces = [[*key, trace] for key, trace in self._switchboard.traceparents.items()]
        return {"calls": [asdict(each) for each in self._switchboard.announced.values()], "traces": traces}

    def merge(self, state: Mapping[str, Any]) -> None:
        for each in state.get("calls", ()):
            self._switchboard.remember(Call(**each), None)
        for provider, call_id, trace in state.get("traces", ()):
            self._switchboard.traceparents[provider, call_id] = trace


class ProcessLink:
    """Messages between the two processes: JSON objects."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> ProcessLink:
        """Return the channel of which `end` is this process's end."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, kind: str, **content: Any) -> None:
        """Send a message; nothing happens if the other process is gone."""
        self.send_framed(frame({"kind": kind, **content}))

    def send_framed(self, message: bytes) -> None:
        """Send a message that was framed elsewhere."""
        if not self._writer.is_closing():
            self._writer.write(message)

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message; ``None`` once the other process is gone."""
        try:
            head = await self._reader.readexactly(HEAD)
            content = json.loads(await self._reader.readexactly(int.from_bytes(head, "big")))
        except (EOFError, OSError):
            return None
        except ValueError:
            # It says nothing that we understand.
            return {}
        return content if isinstance(content, dict) else {}

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class UpgradeFailed(Exception):
    """The new process does not take over; the text says why."""


class Upgrade:
    """
    The running server's part.

    Args:
        launch: How it was started.
        switchboard: What it knows.
        sockets: Where it listens.
        server: What is upgraded.
        metrics_sockets: Where it listens for requests for its metrics.
    """

    def __init__(
        self,
        launch: Launch,
        switchboard: Switchboard,
        sockets: Sequence[socket.socket],
        server: Serving,
        *,
        metrics_sockets: Sequence[socket.socket] = (),
    ) -> None:
        self._launch = launch
        self._switchboard = switchboard
        self._sockets = sockets
        self._metrics_sockets = metrics_sockets
        self._server = server
        self._is_requested = False
        self._task: asyncio.Task[None] | None = None
        #: To the process that has taken over.
        self._channel: ProcessLink | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._told: object = None
        self._relays: set[asyncio.Task[None]] = set()

    @property
    def is_handed_over(self) -> bool:
        """Whether another process takes the calls."""
        return self._channel is not None

    def request(self, *_: object) -> None:
        """Ask for an upgrade: the handler of SIGUSR2."""
        self._is_requested = True

    def tick(self) -> None:
        """Begin with an upgrade that was asked for, and tell the new process how many calls are left; called often."""
        if self._channel is not None and (running := self._switchboard.capacity.running) != self._told:
            self._told = running
            self._channel.send("running", count=running[0], calls=sorted(running[1]))
        if not self._is_requested:
            return
        self._is_requested = False
        if self._channel is not None:
            logger.warning("no upgrade: another process has taken over, and this one finishes its calls")
        elif self._task is not None and not self._task.done():
            logger.warning("no upgrade: one is under way")
        elif reason := self._launch.obstacle or why_impossible(self._switchboard):
            logger.error("no upgrade: {}", reason)
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Tell the new process that nothing more comes: what a bot has started may hold the channel open."""
        if self._channel is not None:
            self._channel.send("ended")

    async def _run(self) -> None:
        copies: list[socket.socket] = []
        switchboard = self._switchboard
        process: subprocess.Popen[bytes] | None = None
        channel: ProcessLink | None = None
        try:
            copies += [each.dup() for each in self._sockets]
            process, end = self._start(copies)
            logger.info("upgrade: process {} starts", process.pid)
            channel = await ProcessLink.open(end)
            await self._expect(process, channel, "ready", START_TIMEOUT_S)
            await self._wait_for_answers(process)
            await self._hand_over(process, channel, copies)
        except Exception as failure:  # noqa: BLE001 - this process goes on whatever it is
            if not isinstance(failure, UpgradeFailed):
                logger.opt(exception=failure).error("the upgrade failed with {}", type(failure).__name__)
            if channel is not None:
                channel.send("abandoned", reason=str(failure))
                channel.close()
            if process is not None:
                await _end(process)
            if switchboard.is_leaving:
                logger.warning("the upgrade is given up: {}", failure)
            else:
                logger.error("the upgrade failed, and this process goes on: {}", failure)
        finally:
            switchboard.dialled.paused = None
            for each in copies:
                each.close()

    def _start(self, sockets: Sequence[socket.socket]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the new process, and hand the sockets over to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                send_sockets(ours, sockets, self._metrics_sockets)
                process = subprocess.Popen(
                    self._launch.command,
                    cwd=self._launch.folder,
                    env={**self._launch.environ, CHANNEL_VARIABLE: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                command = self._launch.command[0]
                raise UpgradeFailed(f"{command} cannot be started: {error.strerror or error}") from error
        return process, ours

    async def _wait_for_answers(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until calls that were placed are answered: their streams are expected by this process."""
        dialled = self._switchboard.dialled
        dialled.paused = Refusal("draining", "the server is being upgraded; try again in a minute")
        if dialled.ringing:
            count = dialled.ringing
            what = (
                "a call that it has placed is answered"
                if count == 1
                else f"{count} calls that it has placed are answered"
            )
            logger.info("upgrade: this process takes calls until {}", what)
        while dialled.ringing:
            self._check_goes_on(process)
            await asyncio.sleep(_LOOK_S)

    def _check_goes_on(self, process: subprocess.Popen[bytes]) -> None:
        if self._switchboard.is_leaving:
            raise UpgradeFailed("the server was asked to stop")
        if (code := process.poll()) is not None:
            raise UpgradeFailed(f"the new process has ended with exit code {code}")

    async def _expect(
        self, process: subprocess.Popen[bytes], channel: ProcessLink, kind: str, timeout_s: float
    ) -> None:
        """Wait until the new process says `kind`."""
        receiving = asyncio.ensure_future(channel.receive())
        until = time.monotonic() + timeout_s
        try:
            while not receiving.done():
                if time.monotonic() > until:
                    raise UpgradeFailed(f"the new process was not ready within {timeout_s:g} s")
                # What it says at last is read first.
                if not (await asyncio.wait({receiving}, timeout=_LOOK_S))[0]:
                    self._check_goes_on(process)
        finally:
            receiving.cancel()
        message = receiving.result()
        if message is None:
            await _ended(process)
            self._check_goes_on(process)
            raise UpgradeFailed("the new process has closed its channel")
        if message.get("kind") == "failed":
            hint = message.get("hint")
            raise UpgradeFailed(f"{message.get('message')}{f' ({hint})' if hint else ''}")
        if message.get("kind") != kind:
            raise UpgradeFailed(f"the new process says {message.get('kind')!r:.40} in place of {kind!r}")

    async def _hand_over(
        self, process: subprocess.Popen[bytes], channel: ProcessLink, sockets: Sequence[socket.socket]
    ) -> None:
        """Accept nothing any more, tell the new process everything, and let it accept."""
        await self._server.stop_accepting()
        try:
            until = time.monotonic() + ANSWER_TIMEOUT_S
            while self._server.is_answering and time.monotonic() < until:  # noqa: ASYNC110 - it is over at once
                await asyncio.sleep(_LOOK_S / 10)
            await asyncio.to_thread(self._switchboard.minutes.write)
            # From here on it is told everything, in order.
            content = {name: part.export() for name, part in parts_of(self._switchboard).items()}
            placed = {secret for each in self._switchboard.dialled.under_way for secret in (each.id, each.token)}
            if (before := self._switchboard.predecessor) is not None:
                # It is asked through this process.
                placed |= before.placed
            self._report_to(channel)
            # A hundred thousand webhooks take a while to write, and calls go on meanwhile.
            state = await asyncio.to_thread(frame, {"kind": "state", "parts": content, "placed": sorted(placed)})
            channel.send_framed(state)
            await self._expect(process, channel, "serving", TAKE_TIMEOUT_S)
        except BaseException:
            self._report_to(None)
            self._sockets = [each.dup() for each in sockets]
            await self._server.accept(self._sockets)
            raise
        # Kept, because it is not waited for: Popen warns of a running process that nobody has.
        self._channel, self._process = channel, process
        self._keep(self._listen(channel))
        self._server.hand_over(process.pid)
        calls = self._switchboard.active_calls
        left = "" if not calls else f"; {plural(calls, 'call')} {'finishes' if calls == 1 else 'finish'} here"
        logger.info("process {} has taken over{}", process.pid, left)

    def _report_to(self, channel: ProcessLink | None) -> None:
        """Tell the new process what it has to know from now on, or nobody."""
        auth, switchboard = self._switchboard.auth, self._switchboard

        def tell(kind: str) -> Callable[..., None]:
            return lambda *arguments: None if channel is None else channel.send(kind, arguments=arguments)

        auth.tokens.on_used = tell("used")
        auth.replays.on_event = tell("replays")
        switchboard.numbers.on_event = tell("numbers")
        if switchboard.clients is not None:
            switchboard.clients.on_pending = tell("pending")
        announced = tell("announced")
        switchboard.on_announced = lambda call, stranger: announced(asdict(call), stranger)

    async def _listen(self, channel: ProcessLink) -> None:
        """Take what the new process passes on, until it is gone."""
        while (message := await channel.receive()) is not None:
            if message.get("kind") == "update":
                self._switchboard.pass_update(message["provider"], CallUpdate(**message["update"]))
            elif message.get("kind") == "request":
                self._keep(self._answer(channel, message))

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    async def _answer(self, channel: ProcessLink, message: Mapping[str, Any]) -> None:
        """Answer a request that came to the new process, and concerns a call of this one."""
        status, headers, body = await _call_application(self._server, message)
        channel.send("response", number=message["number"], status=status, headers=headers, body=body.decode("latin-1"))


async def _call_application(server: Serving, message: Mapping[str, Any]) -> tuple[int, list[list[str]], bytes]:
    """Let the server's own application answer a request."""
    scope = {
        **message["scope"],
        "raw_path": message["scope"]["raw_path"].encode("latin-1"),
        "query_string": message["scope"]["query_string"].encode("latin-1"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in message["scope"]["headers"]],
        "asgi": {"version": "3.0"},
    }
    unread = [{"type": "http.request", "body": message["body"].encode("latin-1")}]
    started: dict[str, Any] = {"status": 500, "headers": []}
    body = bytearray()

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(event: Mapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            started.update(event)
        elif event["type"] == "http.response.body":
            body.extend(event.get("body", b""))

    await server.application(scope, receive, send)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in started["headers"]]
    return started["status"], headers, bytes(body)


def why_impossible(switchboard: Switchboard) -> str:
    """Return why this server cannot be upgraded; empty if it can."""
    config: RunConfig = switchboard.config
    if switchboard.is_leaving:
        return "the server stops"
    if config.tunnel is not None:
        return "the tunnel (--tunnel) ends with this process; restart it, or put a domain of your own in front (-x)"
    if config.number is not None:
        return "the number (--number) is put back when this process ends; restart it, or point the number by hand (-x)"
    if os.getpid() == 1:
        return "this is its container's first process, and the container would end with it; start another container"
    return ""


async def _ended(process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + END_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 - a thread would outlive the loop
        await asyncio.sleep(_LOOK_S)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that has failed."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(OSError):
            process.send_signal(number)
        await _ended(process)


class Predecessor:
    """
    The server that this one takes over from, as it is seen from here.

    Args:
        channel: This process's end.
        switchboard: What is to know everything.
    """

    def __init__(self, end: socket.socket, switchboard: Switchboard) -> None:
        self._end = end
        self._switchboard = switchboard
        self._channel: ProcessLink | None = None
        self._placed: frozenset[str] = frozenset()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def has_calls(self) -> bool:
        """Whether it still has calls."""
        return self._switchboard.capacity.elsewhere[0] > 0

    @property
    def placed(self) -> frozenset[str]:
        """The ids and tokens of the calls that it, or a server before it, has placed."""
        return self._placed

    async def take_over(self) -> None:
        """
        Say that this process is ready, and take in what the other one knows; nobody accepts calls then.

        Raises:
            ServerError: If the other process wants to go on itself.
        """
        channel = self._channel = await ProcessLink.open(self._end)
        channel.send("ready")
        # It may wait for the answers to calls that it has placed.
        early = []
        while (message := await channel.receive()) is not None and message.get("kind") != "state":
            self._check(message)
            early.append(message)
        if message is None:
            logger.warning(
                "the server that this one takes over from is gone; calls that it has announced are not known"
            )
            self._channel = None
            return
        state = message["parts"]
        for name, part in parts_of(self._switchboard).items():
            part.merge(state.get(name, {}))
        self._placed = frozenset(message.get("placed", ()))
        for each in early:
            self._note(each)

    def begin(self, on_failure: Callable[[ServerError], None]) -> None:
        """Say that this process accepts, and listen to what else the other one has to say."""
        self._on_failure = on_failure
        if self._channel is not None:
            self._switchboard.predecessor = self
            self._switchboard.minutes.share(True)
            self._channel.send("serving")
            self._task = asyncio.get_running_loop().create_task(self._follow(self._channel))

    async def _follow(self, channel: ProcessLink) -> None:
        switchboard = self._switchboard
        try:
            while (message := await channel.receive()) is not None and message.get("kind") != "ended":
                self._check(message)
                self._note(message)
        except ServerError as error:
            self._on_failure(error)
        finally:
            switchboard.predecessor = None
            switchboard.capacity.elsewhere = (0, frozenset())
            switchboard.numbers.forget_elsewhere()
            switchboard.minutes.share(False)
            channel.close()
            for each in self._answers.values():
                if not each.done():
                    each.set_exception(ConnectionError("the other process is gone"))

    @staticmethod
    def _check(message: Mapping[str, Any]) -> None:
        if message.get("kind") == "abandoned":
            raise ServerError(f"the running server goes on itself: {message.get('reason')}")

    def _note(self, message: Mapping[str, Any]) -> None:
        auth, switchboard = self._switchboard.auth, self._switchboard
        kind, arguments = message.get("kind"), message.get("arguments", [])
        if kind == "running":
            calls = frozenset((provider, call_id) for provider, call_id in message["calls"])
            switchboard.capacity.elsewhere = (message["count"], calls)
        elif kind == "used":
            auth.tokens.note_used(*arguments)
        elif kind == "replays":
            auth.replays.apply(*arguments)
        elif kind == "numbers":
            switchboard.numbers.apply(*arguments)
        elif kind == "pending" and switchboard.clients is not None:
            switchboard.clients.note_pending(*arguments)
        elif kind == "announced":
            call, stranger = Call(**arguments[0]), arguments[1]
            switchboard.capacity.reserve(call, stranger=stranger)
            switchboard.remember(call, stranger)
        elif kind == "response":
            waiting = self._answers.pop(message["number"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(dict(message))

    def knows(self, secret: str) -> bool:
        """Whether a call's id or token is that of a call which the other server has placed."""
        return secret in self._placed

    def pass_on(self, provider_name: str, update: CallUpdate) -> None:
        """Pass on what a provider reports of a call that is not known here."""
        if self._channel is not None:
            self._channel.send("update", provider=provider_name, update=asdict(update))

    async def relay(self, request: Request, body: bytes | None = None) -> Response:
        """Let the other server answer a request that concerns a call which it has placed."""
        if body is None:
            try:
                body = await requests.read_body(request, self._switchboard.config.message_limit)
            except requests.BodyError as error:
                return requests.close_after(PlainTextResponse(f"{error}\n", error.status))
        assert self._channel is not None
        self._number += 1
        waiting = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._channel.send("request", number=self._number, scope=_scope_of(request), body=body.decode("latin-1"))
        try:
            async with asyncio.timeout(RELAY_TIMEOUT_S):
                answer = await waiting
        except (TimeoutError, ConnectionError):
            return PlainTextResponse("The server that has placed the call does not answer.\n", 503)
        finally:
            self._answers.pop(self._number, None)
        response = Response(answer["body"].encode("latin-1"), answer["status"])
        response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer["headers"]]
        return response


def _scope_of(request: Request) -> dict[str, Any]:
    scope = request.scope
    return {
        **{name: scope.get(name) for name in ("type", "http_version", "method", "scheme", "path", "root_path")},
        "raw_path": scope.get("raw_path", scope["path"].encode()).decode("latin-1"),
        "query_string": scope.get("query_string", b"").decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "client": scope.get("client"),
        "server": scope.get("server"),
    }
