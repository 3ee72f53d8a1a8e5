"""
Which webhooks the servers of a fleet have answered: what :class:`~wsvoice.runner.auth.ReplayGuard` remembers, in Redis.

The rules are the guard's. What differs is that a server may die with its streams: each is on loan for
:data:`STREAM_LEASE_S`, and its server renews that while it is open.

==========================  =======================================================================
``seen:<signature>``        a webhook: when it was first answered, and how many streams had ended then
``request:<both>``          the signature and the idempotency token together
``under-way:<signature>``   it is being answered
``call:<call>``             a call: its first webhook, repeats and streams, and whether it is over
``streams:<call>``          how many streams it has now
==========================  =======================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from wsvoice.errors import SignatureError
from wsvoice.runner.auth import REPEAT_AGE_S, REPEAT_LIMIT, REPEAT_WINDOW_S, REPLAY_WINDOW_S
from wsvoice.runner.seals import digest

if TYPE_CHECKING:
    from wsvoice.runner.capacity import CallKey
    from wsvoice.runner.shared_memory import SharedMemory

#: How long a stream counts after its server was last heard of, and how often that tells, in seconds.
STREAM_LEASE_S, RENEWAL_S = 60, 20
#: How long the answer to a webhook may take, in seconds: as long as a provider waits for it, and longer.
ANSWER_S = 30
#: How often is asked whether the stream of a webhook's call has ended.
POLL_S = 0.05

_ADMIT = """
local seen, request, under_way, call, streams = unpack(KEYS)
local now, has_token, window, age, limit, repeat_window = unpack(ARGV)
now = tonumber(now)
if redis.call('EXISTS', under_way) == 1 then return 'under-way' end
local first, ended_then = unpack(redis.call('HMGET', seen, 'first', 'ended'))
if first and now - first <= tonumber(window) then
  local known = redis.call('HMGET', call, 'first', 'repeats', 'started', 'changed', 'is_over')
  if not known[1] or known[5] then return 'replay' end
  if has_token == '1' and redis.call('EXISTS', request) == 1 then return 'replay' end
  if tonumber(known[2] or 0) >= tonumber(limit) or now - known[1] > tonumber(age) then return 'replay' end
  local open = tonumber(redis.call('GET', streams) or 0)
  if open > 0 then return 'streams' end
  local ended = tonumber(known[3] or 0) - open
  if ended <= tonumber(ended_then) or now - known[4] > tonumber(repeat_window) then return 'replay' end
end
redis.call('SET', under_way, 1, 'EX', ARGV[7])
return 'new'
"""

_ANSWERED = """
local seen, request, under_way, call, streams = unpack(KEYS)
local now, window = unpack(ARGV)
redis.call('DEL', under_way)
redis.call('HSETNX', call, 'first', now)
redis.call('EXPIRE', call, 2 * window)
local first = redis.call('HGET', seen, 'first')
if first and now - first <= tonumber(window) then
  redis.call('HINCRBY', call, 'repeats', 1)
else
  redis.call('HSET', seen, 'first', now)
  redis.call('EXPIRE', seen, window)
end
local open = redis.call('GET', streams) or 0
redis.call('HSET', seen, 'ended', (redis.call('HGET', call, 'started') or 0) - open)
redis.call('SET', request, 1, 'EX', window)
"""

_STREAM_STARTED = """
local call, streams = unpack(KEYS)
if redis.call('EXISTS', call) == 0 then return end
redis.call('HINCRBY', call, 'started', 1)
redis.call('HSET', call, 'changed', ARGV[1])
redis.call('INCR', streams)
redis.call('EXPIRE', streams, ARGV[2])
"""

_STREAM_ENDED = """
local call, streams = unpack(KEYS)
if redis.call('EXISTS', call) == 0 then return end
redis.call('HSET', call, 'changed', ARGV[1])
if redis.call('EXISTS', streams) == 1 and redis.call('DECR', streams) <= 0 then redis.call('DEL', streams) end
"""

_CALL_ENDED = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'is_over', 1) end"

_RENEW = "for _, streams in ipairs(KEYS) do redis.call('EXPIRE', streams, ARGV[1]) end"


class SharedReplays:
    """Remembers the signed webhooks of all servers of a fleet; `now` is Unix time, which all of them share."""

    def __init__(self, memory: SharedMemory, *, now: Callable[[], float] = time.time) -> None:
        self._memory = memory
        self._now = now
        # The streams that are open here.
        self._open: Counter[CallKey] = Counter()
        self._renewed_at = 0.0

    async def admit(
        self, key: str, request_token: str | None, call: CallKey, *, until: float
    ) -> AbstractAsyncContextManager[Callable[[], None]] | None:
        """
        Admit a webhook; arguments and errors as of :meth:`~wsvoice.runner.auth.ReplayGuard.admit`.

        Args:
            until: Until when, on the monotonic clock, the end of the call's stream is waited for if it is repeated.

        Returns:
            The context in which it is answered; ``None`` if the memory does not answer.
        """
        seen = digest(key)
        names = [f"seen:{seen}", f"request:{digest(key, str(request_token))}", f"under-way:{seen}", *_call_names(call)]
        limits = (REPLAY_WINDOW_S, REPEAT_AGE_S, REPEAT_LIMIT, REPEAT_WINDOW_S, ANSWER_S)
        while True:
            has_token = int(request_token is not None)
            verdict = await self._memory.run(_ADMIT, names, self._now(), has_token, *limits)
            if verdict != "streams" or time.monotonic() >= until:
                break
            await asyncio.sleep(POLL_S)
        if verdict is None:
            return None
        if verdict == "under-way":
            raise SignatureError("the webhook is a replay: the same one is being answered at this moment")
        if verdict != "new":
            raise SignatureError("the webhook is a replay: its signature was seen before")
        return self._answering(names, REPLAY_WINDOW_S)

    @asynccontextmanager
    async def _answering(self, names: list[str], window_s: float) -> AsyncIterator[Callable[[], None]]:
        noted: list[bool] = []
        try:
            yield lambda: noted.append(True)
        finally:
            if noted:
                await self._memory.run(_ANSWERED, names, self._now(), window_s)
            else:
                await self._memory.give_back(names[2])

    def stream_started(self, call: CallKey) -> None:
        """As :meth:`~wsvoice.runner.auth.ReplayGuard.stream_started`."""
        self._open[call] += 1
        self._memory.later(_STREAM_STARTED, _call_names(call), self._now(), STREAM_LEASE_S)

    def stream_ended(self, call: CallKey) -> None:
        """As :meth:`~wsvoice.runner.auth.ReplayGuard.stream_ended`."""
        self._open[call] -= 1
        if self._open[call] <= 0:
            del self._open[call]
        self._memory.later(_STREAM_ENDED, _call_names(call), self._now())

    def call_ended(self, call: CallKey) -> None:
        """As :meth:`~wsvoice.runner.auth.ReplayGuard.call_ended`."""
        self._memory.later(_CALL_ENDED, _call_names(call)[:1])

    def renew(self) -> None:
        """Tell, now and then, that the streams are still open; to be called more often than that."""
        now = time.monotonic()
        if self._open and now - self._renewed_at >= RENEWAL_S:
            self._renewed_at = now
            self._memory.later(_RENEW, [_call_names(call)[1] for call in self._open], STREAM_LEASE_S)


def _call_names(call: CallKey) -> list[str]:
    known_by = digest(*call)
    return [f"call:{known_by}", f"streams:{known_by}"]
