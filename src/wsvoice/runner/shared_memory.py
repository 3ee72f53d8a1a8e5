"""
What the servers of a fleet remember together: :class:`SharedMemory`, in Redis or in this process.

Nothing waits for a memory that does not answer: an operation then returns ``None`` after :data:`TIMEOUT_S`, the next
ones do at once until it is back, and whoever asked goes by what this server remembers by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from loguru import logger

from wsvoice.config import without_secrets
from wsvoice.errors import ConfigError, ServerError

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

ResultT = TypeVar("ResultT")

#: How long an operation may take. A webhook needs two.
TIMEOUT_S = 0.1
#: How much longer it may take if the event loop was busy meanwhile.
GRACE_S = 0.02
#: How long the server may take to answer at start, and when it is asked whether it is back.
CONNECT_TIMEOUT_S = 2.0
#: How often it is asked whether it is there.
RETRY_S = 1.0
#: How many notes wait to be sent, and for how long, in seconds; what is older is dropped.
QUEUE_LIMIT, KEEP_S = 10_000, 15.0
#: How many connections at once.
CONNECTION_LIMIT = 32
#: What all keys begin with. Several fleets may have one Redis: what they store has nothing in common.
PREFIX = "wsvoice:"
#: For how long it keeps what is written to see whether it remembers anything, in seconds.
PROBE_TTL_S = 5
#: Where the servers tell each other something.
CHANNEL = f"{PREFIX}messages"


class SharedMemory(Protocol):
    """
    What servers remember together. Names are no secrets, nor ids of calls: digests stand for them.

    Everything returns ``None`` if the memory does not answer.
    """

    async def take(self, name: str, ttl_s: float) -> bool | None:
        """Take a name, which lasts `ttl_s`; false if somebody has it."""

    async def give_back(self, name: str) -> None:
        """Give a name back."""

    async def add(self, name: str, amount: float, ttl_s: float) -> float | None:
        """Add to a number, and return it; it is forgotten `ttl_s` after the first time."""

    async def run(self, script: str, names: list[str], *arguments: str | float) -> Any:
        """Run a script of Redis's on names, without anything in between."""

    def later(self, script: str, names: list[str], *arguments: str | float) -> None:
        """Run a script soon, after those that were asked for before."""

    def publish(self, message: str) -> None:
        """Tell the other servers something, and this one too."""


class RedisMemory:
    """
    A :class:`SharedMemory` in one Redis server, 5 or later.

    Attributes:
        on_message: What is called with what a server has told.
        upkeep: What is called every second while the server answers.
    """

    def __init__(self, url: str) -> None:
        self.on_message: Callable[[str], None] = lambda message: None
        self.upkeep: Callable[[], None] = lambda: None
        self._url = url
        self._client: Redis | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[float, Callable[[Redis], Awaitable[Any]]]] = deque(maxlen=QUEUE_LIMIT)
        self._is_queued = asyncio.Event()
        self._is_up = True
        self._listener: asyncio.Task[None] | None = None

    # The connection

    def start(self) -> None:
        """Begin to listen to the other servers; in the event loop, and once."""
        if self._client is not None:
            return
        self._client = _client(self._url)
        self._listener = self._begin(self._listen(self._client))
        for work in (self._send(self._client), self._watch(self._client)):
            self._begin(work)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End the connections."""
        client, self._client = self._client, None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if client is not None:
            await client.aclose()

    async def _try(self, work: Callable[[Redis], Awaitable[ResultT]]) -> ResultT | None:
        """Do something unless the server is known to be away; ``None`` if it is, or does not answer in time."""
        self.start()
        if not self._is_up or self._client is None:
            return None
        try:
            return await _in_time(work(self._client), TIMEOUT_S)
        except _failures() as error:
            self._note_down(error)
            return None

    def _note_down(self, error: BaseException) -> None:
        if not self._is_up:
            return
        self._is_up = False
        logger.warning(
            "Redis does not answer ({}); calls go on. Until it is back, each server remembers by itself: a stream token"
            " or a captured webhook may be used once at each, and reports reach only the server that they come to",
            error,
        )

    async def _watch(self, client: Redis) -> None:
        """See that the server is there, and notice when it is back."""
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                # A server that is full, or a replica, answers all the same, and remembers nothing.
                await _in_time(_running(_PROBE, ["probe"], (PROBE_TTL_S,))(client), CONNECT_TIMEOUT_S)
            except _failures() as error:
                self._note_down(error)
                continue
            if not self._is_up:
                self._is_up = True
                self._is_queued.set()
                logger.info("Redis is back: the servers remember together again")
                # Nobody knows whether it still has the old connection.
                self._listen_anew(client)
            elif self._listener is None or self._listener.done():
                self._listen_anew(client)
            self.upkeep()

    def _listen_anew(self, client: Redis) -> None:
        """Hear what the servers tell by another connection, also after an error with something that one has told."""
        before = self._listener
        self._listener = self._begin(self._listen(client))
        if before is None or not before.done():
            if before is not None:
                before.cancel()
        elif not before.cancelled() and (error := before.exception()) is not None:
            logger.opt(exception=error).error("what another server has told could not be carried out")

    async def _send(self, client: Redis) -> None:
        """Carry out what is to be done later, in its order; what comes while the server is away waits for a while."""
        while True:
            await self._is_queued.wait()
            while self._queue and self._is_up:
                at, work = self._queue.popleft()
                if time.monotonic() - at < KEEP_S:
                    await self._try(work)
            self._is_queued.clear()

    async def _listen(self, client: Redis) -> None:
        """Hear what the servers tell, as long as there is a connection, and connect again."""
        while True:
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(CHANNEL)
                await self._hear(pubsub)
            except _failures() as error:
                self._note_down(error)
            finally:
                await _closed(pubsub)
            await asyncio.sleep(RETRY_S)

    async def _hear(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is not None:
                self.on_message(message["data"])

    # Operations

    async def take(self, name: str, ttl_s: float) -> bool | None:
        """As :class:`SharedMemory`."""

        async def work(client: Redis) -> bool:
            return bool(await client.set(PREFIX + name, 1, nx=True, px=max(1, int(ttl_s * 1000))))

        return await self._try(work)

    async def give_back(self, name: str) -> None:
        """As :class:`SharedMemory`."""
        await self._try(lambda client: client.delete(PREFIX + name))

    async def add(self, name: str, amount: float, ttl_s: float) -> float | None:
        """As :class:`SharedMemory`."""
        total = await self.run(_ADD, [name], amount, ttl_s)
        return None if total is None else float(total)

    async def run(self, script: str, names: list[str], *arguments: str | float) -> Any:
        """As :class:`SharedMemory`."""
        return await self._try(_running(script, names, arguments))

    def later(self, script: str, names: list[str], *arguments: str | float) -> None:
        """As :class:`SharedMemory`."""
        self._put(_running(script, names, arguments))

    def publish(self, message: str) -> None:
        """As :class:`SharedMemory`."""
        self._put(lambda client: client.publish(CHANNEL, message))

    def _put(self, work: Callable[[Redis], Awaitable[Any]]) -> None:
        self.start()
        self._queue.append((time.monotonic(), work))
        self._is_queued.set()


#: KEYS: the number. ARGV: how much is added; for how long it lasts, in seconds.
_ADD = """
local total = redis.call('INCRBYFLOAT', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] * 1000)) end
return total
"""

#: KEYS: anything. ARGV: for how long it lasts, in seconds.
_PROBE = "redis.call('SET', KEYS[1], 1, 'EX', ARGV[1])"


def require_library() -> None:
    """
    Make sure that the library for Redis is there; it is optional.

    Raises:
        ServerError: If it is missing.
    """
    try:
        import redis  # noqa: F401 - only looked for
    except ModuleNotFoundError as error:
        raise ServerError("--redis needs the library redis", hint="pip install 'wsvoice[redis]'") from error


def connect(url: str | None) -> RedisMemory | None:
    """
    Return the memory that a Redis server holds; ``None`` without a URL.

    Raises:
        ConfigError: As :func:`check_url`.
        ServerError: If the library is missing, or the server does not answer, or remembers nothing.
    """
    if url is None:
        return None
    shown = without_secrets(url)
    check_url(url)
    import redis

    client = redis.Redis.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_S, socket_timeout=CONNECT_TIMEOUT_S)
    try:
        client.eval(_PROBE, 1, f"{PREFIX}probe", PROBE_TTL_S)
        with client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(CHANNEL)
            pubsub.get_message(timeout=CONNECT_TIMEOUT_S)
    except (redis.RedisError, OSError) as error:
        hint, fails = "start it, or correct --redis; without --redis each server remembers by itself", "does not answer"
        if isinstance(error, redis.AuthenticationError):
            hint = "put the password into the URL: redis://:PASSWORD@HOST:PORT"
        elif isinstance(error, redis.ResponseError):
            hint = (
                f"it has to take {PREFIX}*, scripts and the channel {CHANNEL}: no replica, and an ACL that allows them"
            )
            fails = "does not remember"
        raise ServerError(f"the Redis server at {shown} {fails}: {error}", hint=hint) from error
    finally:
        client.close()
    return RedisMemory(url)


def check_url(url: str) -> None:
    """
    Make sure that the library for Redis is there, and takes `url` with all that is behind its question mark.

    Raises:
        ConfigError: If it does not take it.
        ServerError: If it is missing.
    """
    require_library()
    from redis import RedisError

    try:
        # Some of it is looked at only when there is a connection.
        _client(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        # Not which class of the library's says it.
        why = str(error).rpartition("__init__() ")[2]
        raise ConfigError(
            f"--redis {without_secrets(url)} is not understood: {why}",
            hint="after `?` there are options of a connection, such as `?socket_timeout=1`; leave out what is none",
        ) from error


def _client(url: str) -> Redis:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    more = {} if url.startswith("unix:") else {"socket_keepalive": True}
    # A connection that was closed meanwhile is opened again once.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTION_LIMIT,
        timeout=TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        **more,
        decode_responses=True,
        # Anybody who reaches the server may publish anything.
        encoding_errors="replace",
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


def _failures() -> tuple[type[BaseException], ...]:
    from redis import RedisError

    # uvloop raises a RuntimeError where a connection was closed a moment ago.
    return RedisError, OSError, TimeoutError, RuntimeError


def _running(script: str, names: list[str], arguments: tuple[str | float, ...]) -> Callable[[Redis], Awaitable[Any]]:
    keys = [PREFIX + name for name in names]

    async def work(client: Redis) -> Any:
        return await client.register_script(script)(keys=keys, args=list(arguments))

    return work


async def _closed(pubsub: PubSub) -> None:
    with suppress(*_failures()):
        await _in_time(pubsub.aclose(), TIMEOUT_S)  # type: ignore[no-untyped-call]


async def _in_time(work: Awaitable[ResultT], timeout_s: float) -> ResultT:
    """
    Return what becomes of `work`; a :exc:`TimeoutError` if that takes longer.

    Not by :func:`asyncio.timeout`: before Python 3.12 pipecat puts another library's function in the place of
    :func:`asyncio.wait_for`, which redis uses, and what that raises when it is cancelled is no longer a timeout.
    """
    task = asyncio.ensure_future(work)
    # Nobody may ask for the result any more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        # The answer may have come while the event loop was busy.
        done, _ = await asyncio.wait({task}, timeout=GRACE_S)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return task.result()
