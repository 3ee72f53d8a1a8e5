"""
Who may come in: signed webhooks, stream tokens, and how many calls at once.

A webhook that passes gets a stream token, which is the only way to a stream on a public address. The token is
signed, bound to the call's id, works once and for a minute: long enough for a provider to dial, too short to
be passed on.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import math
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from wsvoice.call import Call
from wsvoice.config import RunConfig, Verify
from wsvoice.errors import ConfigError, SignatureError, TokenError
from wsvoice.providers import PROVIDERS, load_server
from wsvoice.providers.base import Server, WebhookRequest

#: How long a stream token is good for. Providers dial within seconds; Twilio gives up after 15.
TOKEN_TTL_S = 60
#: How many characters a stream token may have; those that are minted have far fewer.
TOKEN_LIMIT = 32 * 1024
#: How long a place is kept for the stream of a webhook that nobody signed.
STRANGER_TTL_S = 15
#: What strangers have a share of where calls are not limited, in places.
UNLIMITED_PLACES = 1000
#: How long a seen webhook is remembered, and how many are; whichever ends first.
REPLAY_WINDOW_S = 24 * 3600
REPLAY_ENTRIES = 100_000
#: How long after the end of our stream its call may come back to the same address. Nobody tells how long it lasts.
REPEAT_WINDOW_S = 600
#: For how long after its first webhook a call may come back at all, and how often. Twilio ends calls after 4 h.
REPEAT_AGE_S = 4 * 3600
REPEAT_LIMIT = 100
#: How long a repeated webhook waits for the end of its call's stream, which it may have overtaken.
STREAM_END_WAIT_S = 1.0

#: A call as the gate knows it: its provider's name and its id.
CallKey = tuple[str, str]


def call_key(call: Call) -> CallKey:
    """Return what tells `call` from every other."""
    return call.provider, call.call_id


def served_providers(config: RunConfig) -> dict[str, Server]:
    """
    Return the providers that a server with these settings serves, by name.

    On a public address whoever finds the URL could run calls at the owner's cost, so webhooks are verified there,
    unless ``--verify off`` says otherwise. A provider that signs nothing is served there if it is asked for by name.

    Raises:
        ConfigError: If a secret is malformed, or is needed and unknown.
    """
    if config.transport is not None:
        names = [config.transport] if config.transport in PROVIDERS else []
    else:
        names = list(PROVIDERS)
    providers = {name: load_server(name, config.credentials) for name in names}
    if config.verify == "off":
        return providers
    able = {name: each for name, each in providers.items() if each.signs and each.can_verify()}
    is_public = config.public_url is not None or config.tunnel is not None
    if config.transport is None and (is_public or config.verify == "enforce"):
        if not able:
            raise ConfigError(
                "no provider's webhooks can be verified, for no provider's signing secret is set",
                hint=f"set one in the environment or in {config.dotenv_place}: "
                f"{_secrets(providers.values())}{_or_off(config)}",
            )
        providers = able
    for provider in providers.values():
        if provider.name in able:
            _check_secret(provider)
        elif config.verify == "enforce" and not provider.signs:
            raise ConfigError(
                f"{provider.title} signs nothing, so --verify enforce would refuse all of its calls",
                hint="serve a provider that signs, such as -t twilio, or leave --verify out: "
                "stream tokens are checked all the same",
            )
        elif provider.signs and (is_public or config.verify == "enforce"):
            name = provider.credential_names[0]
            why = "--verify enforce" if config.verify == "enforce" else "a public address"
            raise ConfigError(
                f"{why} needs {provider.title}'s signing secret, and {name} is not set",
                hint=f"set {name} in the environment or in {config.dotenv_place}{_or_off(config)}",
            )
    return providers


def _check_secret(provider: Server) -> None:
    with suppress(SignatureError):
        # No request is signed like this; a secret that is none is told now, and not by the first call.
        provider.verify(WebhookRequest("POST", "http://localhost/"), now=0.0)


def _secrets(providers: Iterable[Server]) -> str:
    return ", ".join(each.credential_names[0] for each in providers if each.signs)


def _or_off(config: RunConfig) -> str:
    if config.verify == "enforce":
        return ""
    return "; or, if anybody who finds the URL may start calls at your cost: --verify off"


@dataclass(frozen=True, slots=True)
class Announcement:
    """
    What a stream token says.

    Attributes:
        call: The call that it was made for.
        verified: Whether somebody vouched for who asked for it: the provider by a signature, or the holder of a key.
    """

    call: Call
    verified: bool


class TokenMint:
    """
    Makes and checks stream tokens: the call they are for, when they end, and a signature over both.

    The used ones are remembered for as long as they would be valid, so memory is bounded by the rate of calls.
    """

    def __init__(self, *, secret: bytes | None = None, now: Callable[[], float] = time.time) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._now = now
        self._used: OrderedDict[str, float] = OrderedDict()

    def mint(self, call: Call, *, verified: bool = True) -> str:
        """Return a token for one stream of `call`; it holds nothing but ``A-Za-z0-9_-.``."""
        claims = [
            call.provider,
            call.call_id,
            call.account_id,
            call.from_number,
            call.to_number,
            call.direction,
            call.control,
            verified,
            int(self._now()) + TOKEN_TTL_S,
            secrets.token_hex(8),
        ]
        body = _b64(json.dumps(claims, separators=(",", ":")).encode())
        return f"{body}.{self._sign(body)}"

    def redeem(self, token: str, provider: str) -> Announcement:
        """
        Return what `token` says, and use the token up.

        Raises:
            TokenError: If it is forged, for another provider, expired, or used.
        """
        if len(token) > TOKEN_LIMIT or not token.isascii():
            raise TokenError("the stream token was not made by this server")
        body, _, signature = token.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            raise TokenError("the stream token was not made by this server")
        # The signature vouches for the shape of what follows.
        name, *fields, verified, expires, nonce = json.loads(_unb64(body))
        now = self._now()
        if name != provider:
            raise TokenError(f"the stream token is for {name}, not for {provider}")
        if now > expires:
            raise TokenError(f"the stream token expired {now - expires:.0f} s ago")
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if nonce in self._used:
            raise TokenError("the stream token was used before")
        self._used[nonce] = expires
        names = ("call_id", "account_id", "from_number", "to_number", "direction", "control")
        return Announcement(Call(provider=name, **dict(zip(names, fields, strict=True))), verified)

    def _sign(self, body: str) -> str:
        return _b64(hmac.new(self._secret, body.encode(), hashlib.sha256).digest()[:16])


@dataclass(slots=True)
class _KnownCall:
    """What the guard knows of a call whose webhook was answered."""

    first_at: float
    repeats: int = 0
    streams: int = 0
    ended_streams: int = 0
    ended_at: float = -math.inf
    is_over: bool = False
    #: Set when it has no stream; made when somebody waits for that.
    idle: asyncio.Event | None = None


class ReplayGuard:
    """
    Remembers signed webhooks, because most providers sign no time.

    A webhook is remembered once it has been answered with success, so that what failed may be tried again. After
    that the same signature is good once more each time our stream of its call has ended while the call goes on:
    Twilio asks with equal fields again when a document redirects to the same address. A call may do that for as long
    as it can last, :data:`REPEAT_AGE_S` from its first webhook, and :data:`REPEAT_LIMIT` times; neither is renewed by
    a repeat. An idempotency token (Twilio's ``I-Twilio-Idempotency-Token``) is not signed, so it admits nobody; but a
    request that repeats the token as well is a replay, and is refused.

    Whoever has captured a webhook can thus use it for the rest of its call. Once it is forgotten, after
    :data:`REPLAY_WINDOW_S`, it is good once more.

    Only calls that a provider vouched for are known here, so memory is bounded by their rate and by
    :data:`REPLAY_ENTRIES`.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # By digest of the signature: when it was first answered, and how many streams of its call had ended when it
        # was answered last.
        self._answered: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        # Digests of signature and idempotency token together: when.
        self._requests: OrderedDict[bytes, float] = OrderedDict()
        self._calls: OrderedDict[CallKey, _KnownCall] = OrderedDict()
        self._under_way: set[bytes] = set()

    @contextmanager
    def admit(self, key: str, request_token: str | None, call: CallKey) -> Iterator[Callable[[], None]]:
        """
        Let a webhook in while the context lasts; what it gives is called once the answer is a success.

        Args:
            key: What is the same in every repetition, such as the signature.
            request_token: The idempotency token; ``None`` where the provider sends none.
            call: The webhook's call.

        Raises:
            SignatureError: If it is a replay, or the same webhook is being answered at this moment.
        """
        seen, request = _digest(key), _digest(f"{key}\n{request_token}")
        self._forget()
        if seen in self._under_way:
            raise SignatureError("the webhook is a replay: the same one is being answered at this moment")
        if seen in self._answered and not self._may_repeat(seen, None if request_token is None else request, call):
            raise SignatureError("the webhook is a replay: its signature was seen before")
        self._under_way.add(seen)
        succeeded = False

        def succeed() -> None:
            nonlocal succeeded
            succeeded = True

        try:
            yield succeed
        finally:
            self._under_way.discard(seen)
            if succeeded:
                self._remember(seen, request, call)

    async def wait_for_stream_end(self, key: str, call: CallKey, timeout_s: float) -> None:
        """Wait for the end of a call's stream if its webhook is repeated, which may have overtaken it."""
        known = self._calls.get(call)
        if known is None or not known.streams or known.is_over or _digest(key) not in self._answered:
            return
        known.idle = known.idle or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await known.idle.wait()

    def stream_started(self, call: CallKey) -> None:
        """Note that a stream of `call` was accepted."""
        if (known := self._calls.get(call)) is not None:
            known.streams += 1

    def stream_ended(self, call: CallKey) -> None:
        """Note that a stream of `call` was closed."""
        if (known := self._calls.get(call)) is not None and known.streams:
            known.streams -= 1
            known.ended_streams += 1
            known.ended_at = self._now()
            if known.idle is not None and not known.streams:
                known.idle.set()
                known.idle = None

    def call_ended(self, call: CallKey) -> None:
        """Note that the provider has reported `call` to be over."""
        if (known := self._calls.get(call)) is not None:
            known.is_over = True

    def _may_repeat(self, seen: bytes, request: bytes | None, call: CallKey) -> bool:
        now, known = self._now(), self._calls.get(call)
        if known is None or known.is_over or known.streams or request in self._requests:
            return False
        if known.repeats >= REPEAT_LIMIT or now - known.first_at > REPEAT_AGE_S:
            return False
        _, ended_streams = self._answered[seen]
        return known.ended_streams > ended_streams and now - known.ended_at <= REPEAT_WINDOW_S

    def _remember(self, seen: bytes, request: bytes, call: CallKey) -> None:
        now = self._now()
        known = self._calls.setdefault(call, _KnownCall(first_at=now))
        self._calls.move_to_end(call)
        first_at, _ = self._answered.get(seen, (None, 0))
        if first_at is not None:
            known.repeats += 1
        self._answered[seen] = (now if first_at is None else first_at, known.ended_streams)
        self._requests[request] = now
        self._requests.move_to_end(request)

    def _forget(self) -> None:
        oldest = self._now() - REPLAY_WINDOW_S
        while self._answered and (
            len(self._answered) > REPLAY_ENTRIES or next(iter(self._answered.values()))[0] < oldest
        ):
            self._answered.popitem(last=False)
        while self._requests and (len(self._requests) > REPLAY_ENTRIES or next(iter(self._requests.values())) < oldest):
            self._requests.popitem(last=False)
        while len(self._calls) > REPLAY_ENTRIES:
            self._calls.popitem(last=False)


@dataclass(slots=True)
class _Line:
    """A call that is running: how many streams it has, and until when a place is kept for its next one."""

    streams: int = 1
    next_until: float = -math.inf
    stranger: str | None = None


class Place:
    """
    A place that a stream has taken.

    :meth:`leave` is called in any case, and :meth:`start` and :meth:`close` before it if it comes to that.
    """

    def __init__(self, capacity: Capacity, call: CallKey | None, *, is_strangers: bool) -> None:
        self._capacity = capacity
        self._call = call
        self._is_silent = is_strangers
        self._is_closed = False
        self._has_left = False

    def start(self) -> None:
        """Note that the stream has started, so that it is a call like any other."""
        if self._is_silent:
            self._is_silent = False
            self._capacity._silent_strangers -= 1

    def close(self) -> None:
        """Free the line: the stream is closed, though its bot may still have something to do."""
        self.start()
        if not self._is_closed:
            self._is_closed = True
            self._capacity._close(self._call)

    def leave(self) -> None:
        """Go: the bot has ended as well."""
        self.close()
        if not self._has_left:
            self._has_left = True
            self._capacity._leave()


class Capacity:
    """
    How many calls may run at once; checked and reserved in one step.

    A webhook reserves a place for as long as its token is good; the stream takes the place over. A call has one
    place however many webhooks ask for it: one that comes while it runs (a redirect) keeps the place for the call's
    next stream.

    Strangers' webhooks, those that nobody signed, are answered while there is room, but keep few places, and not for
    long: :data:`STRANGER_TTL_S`, at most a quarter of all for one address and half of them for all strangers, one at
    least. A webhook beyond its share is answered too; its stream takes a place if there is one when it comes. So a
    stranger who asks and never dials blocks nobody for long, and many callers behind one proxy, tunnel or provider's
    address are served all the same. A verified webhook that finds no room takes a place that is kept for a stranger.

    Strangers' streams that have not started may hold half of the places, two at least (two callers may come at the
    same moment). One that has started is a call like any other and may fill every place: who serves webhooks without
    verifying them (``--verify off``, a provider that signs nothing, localhost) accepts everybody as a caller, and a
    start message is as easily sent as a webhook. Only signatures tell callers from strangers.

    A call whose line is free no longer counts, though its bot may still be at work, unless more bots do that than
    there are places.

    Args:
        limit: How many at once; ``None`` for no limit.
    """

    def __init__(self, limit: int | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        places = UNLIMITED_PLACES if limit is None else limit
        self._share = max(1, places // 4)
        self._strangers_share = max(1, places // 2)
        self._silent_share = max(2, places // 2)
        # Strangers' streams that have not started.
        self._silent_strangers = 0
        # Both in the order in which they expire. A stranger's comes with its address.
        self._reserved: OrderedDict[CallKey, float] = OrderedDict()
        self._strangers: OrderedDict[CallKey, tuple[float, str]] = OrderedDict()
        self._stranger_counts: Counter[str] = Counter()
        self._lines: dict[CallKey, _Line] = {}
        self._active = 0
        self._present = 0

    @property
    def active(self) -> int:
        """How many calls are running."""
        return self._active

    @property
    def present(self) -> int:
        """How many streams' bots are at work; more than there are calls while some have something to finish."""
        return self._present

    @property
    def reserved(self) -> int:
        """For how many calls a place is kept whose streams may still come."""
        self._forget_expired()
        return len(self._reserved) + len(self._strangers)

    def reserve(self, call: Call, *, stranger: str | None = None) -> bool:
        """
        Keep a place for the stream of `call`; false if there is none.

        Args:
            call: The call.
            stranger: The address that an unsigned webhook came from; ``None`` for one that can be trusted.
        """
        self._forget_expired()
        key = call_key(call)
        if (line := self._lines.get(key)) is not None:
            line.next_until = self._now() + (TOKEN_TTL_S if stranger is None else STRANGER_TTL_S)
            line.stranger = stranger
            return True
        was_trusted = key in self._reserved
        if not self._drop(key) and self._is_full() and not (stranger is None and self._displace_stranger()):
            return False
        self._keep(key, None if was_trusted else stranger)
        return True

    def knows(self, call: CallKey) -> bool:
        """Whether a call is running, or has a place kept for it."""
        self._forget_expired()
        return call in self._lines or call in self._reserved or call in self._strangers

    def forget(self, call: CallKey) -> None:
        """Give back the place that is kept for a call's stream; a call that is running goes on."""
        self._drop(call)
        if (line := self._lines.get(call)) is not None:
            line.next_until = -math.inf

    def occupy(self, call: Call | None, *, is_strangers: bool = False) -> Place | None:
        """
        Take a place for a stream, the one kept for its call if there is one; ``None`` if there is none.

        Args:
            call: The call that its token is for; ``None`` without one.
            is_strangers: Whether nobody vouches for it, so that it counts as a stranger's until it starts.
        """
        self._forget_expired()
        if is_strangers and self._silent_strangers >= self._silent_share:
            return None
        key = call_key(call) if call is not None else None
        line = self._lines.get(key) if key is not None else None
        if line is not None and line.streams == 1 and line.next_until >= self._now():
            # Of the two streams one is about to end: a call has one at a time.
            line.streams = 2
            line.next_until = -math.inf
        else:
            if not (key is not None and self._drop(key)) and self._is_full():
                return None
            if line is not None:
                key = None
            elif key is not None:
                self._lines[key] = _Line()
            self._active += 1
        self._present += 1
        self._silent_strangers += is_strangers
        return Place(self, key, is_strangers=is_strangers)

    def _close(self, key: CallKey | None) -> None:
        line = self._lines.get(key) if key is not None else None
        if key is not None and line is not None:
            line.streams -= 1
            if line.streams:
                return
            del self._lines[key]
        self._active -= 1
        if key is not None and line is not None and line.next_until >= self._now():
            self._keep(key, line.stranger)

    def _leave(self) -> None:
        self._present -= 1

    def _is_full(self) -> bool:
        if self.limit is None:
            return False
        lingering = max(0, self._present - self._active)
        taken = self._active + len(self._reserved) + len(self._strangers)
        return taken + max(0, lingering - self.limit) >= self.limit

    def _displace_stranger(self) -> bool:
        """Give up the oldest place that is kept for a stranger; false if that does not make room."""
        if self._strangers:
            self._drop(next(iter(self._strangers)))
        return not self._is_full()

    def _keep(self, key: CallKey, stranger: str | None) -> None:
        now = self._now()
        if stranger is None:
            self._reserved[key] = now + TOKEN_TTL_S
        elif self._stranger_counts[stranger] < self._share and len(self._strangers) < self._strangers_share:
            self._strangers[key] = (now + STRANGER_TTL_S, stranger)
            self._stranger_counts[stranger] += 1

    def _drop(self, key: CallKey) -> bool:
        if self._reserved.pop(key, None) is not None:
            return True
        kept = self._strangers.pop(key, None)
        if kept is None:
            return False
        _, stranger = kept
        self._stranger_counts[stranger] -= 1
        if not self._stranger_counts[stranger]:
            del self._stranger_counts[stranger]
        return True

    def _forget_expired(self) -> None:
        now = self._now()
        while self._reserved and next(iter(self._reserved.values())) < now:
            self._reserved.popitem(last=False)
        while self._strangers and next(iter(self._strangers.values()))[0] < now:
            self._drop(next(iter(self._strangers)))


@dataclass(slots=True)
class Gate:
    """Everything that stands between the internet and a bot."""

    verify: Verify
    tokens: TokenMint
    replays: ReplayGuard
    capacity: Capacity
    #: The provider that was asked for by name, which is taken as it is if it signs nothing.
    asked_for: str | None = None
    #: Set while the process drains: nobody new comes in.
    closed: bool = False

    def verifies(self, provider: Server) -> bool:
        """Whether this provider's webhooks are checked."""
        return self.verify != "off" and provider.can_verify()

    def check_webhook(self, provider: Server, request: WebhookRequest, *, is_public: bool) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless this webhook comes from the provider.

        Args:
            provider: Who is to have sent it.
            request: With the URL that the provider saw.
            is_public: Whether it came in by a public address, where what cannot be verified is not taken.
        """
        if self.verifies(provider):
            _verify(provider, request)
        elif is_public and self.verify != "off" and (provider.signs or provider.name != self.asked_for):
            if provider.signs:
                raise SignatureError(
                    f"{provider.title}'s webhooks cannot be verified, for {provider.credential_names[0]} is not set",
                    hint=f"set {provider.credential_names[0]} and start with -x and the public host; "
                    "or take them unverified with --verify off",
                )
            raise SignatureError(
                f"{provider.title} signs nothing, so its webhooks cannot be verified",
                hint=f"serve it by name with -t {provider.name}, with -x and the public host; "
                "or take them unverified with --verify off",
            )

    @asynccontextmanager
    async def admit(self, provider: Server, request: WebhookRequest, call_id: str) -> AsyncIterator[Callable[[], None]]:
        """
        Let a webhook in that was checked, unless it is a replay; see :meth:`ReplayGuard.admit`.

        Raises:
            SignatureError: If it is one.
        """
        if not self.verifies(provider):
            yield lambda: None
            return
        key, request_token = provider.replay_key(request)
        call = (provider.name, call_id)
        await self.replays.wait_for_stream_end(key, call, STREAM_END_WAIT_S)
        with self.replays.admit(key, request_token, call) as succeed:
            yield succeed

    def check_upgrade(self, provider: Server, request: WebhookRequest) -> str | None:
        """
        Return which form of its URL the upgrade is signed in; ``None`` if nothing is checked.

        Raises:
            SignatureError: If no form matches. The providers' documents contradict each other on what they sign,
                so this turns a stream away only with ``--verify enforce``.
        """
        return provider.verify_upgrade(request, now=time.time()) if self.verifies(provider) else None


def _verify(provider: Server, request: WebhookRequest) -> None:
    """Verify a webhook; the URL of a site may be signed with its slash or without, and is asked with it either way."""
    now = time.time()
    try:
        provider.verify(request, now=now)
    except SignatureError:
        parts = urlsplit(request.url)
        if parts.path != "/":
            raise
        try:
            provider.verify(replace(request, url=parts._replace(path="").geturl()), now=now)
        except SignatureError:
            pass
        else:
            return
        raise


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:  # pragma: no cover - signed by us
        raise TokenError("the stream token is damaged") from error
