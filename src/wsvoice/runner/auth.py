"""
Who may start a call: webhook signatures, stream tokens, replays.

An accepted webhook is answered with a stream token, without which no stream is accepted on a public address. The
token is signed and bound to the call's id, and works once within a minute: long enough for a provider to dial, too
short to be passed on.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wsvoice.call import Call
from wsvoice.config import RunConfig, Verify
from wsvoice.errors import ConfigError, SignatureError, TokenError
from wsvoice.providers import PROVIDERS, load_server
from wsvoice.providers.base import Server, WebhookRequest
from wsvoice.runner.capacity import TOKEN_TTL_S, CallKey
from wsvoice.runner.seals import Seals, digest

if TYPE_CHECKING:
    from wsvoice.runner.fleet import Fleet

#: How long an answered webhook is remembered, and how many of them, whichever limit is reached first.
REPLAY_WINDOW_S = 24 * 3600
REPLAY_ENTRIES = 100_000
#: How long after the end of its stream a call may come back to the same address; providers do not document it.
REPEAT_WINDOW_S = 600
#: How long after its first webhook, and how often, a call may come back at all. Twilio ends calls after 4 h.
REPEAT_AGE_S = 4 * 3600
REPEAT_LIMIT = 100
#: How long a repeated webhook, which may overtake the end of its call's stream, waits for it.
STREAM_END_WAIT_S = 1.0
#: What a stream token says of its call.
_CLAIMS = ("provider", "call_id", "account_id", "from_number", "to_number", "direction", "control")


def served_providers(config: RunConfig) -> dict[str, Server]:
    """
    Return the providers that a server with these settings serves, by name.

    On a public address anybody who finds the URL could run calls at the owner's cost, so webhooks are verified there
    unless ``--verify off`` is given. A provider that signs nothing is served there only if it is chosen by name, or if
    all of its streams carry a password.

    Raises:
        ConfigError: If a secret is malformed or missing.
    """
    names = [name for name in PROVIDERS if config.transport in (None, name)]
    providers = {name: load_server(name, config.credentials) for name in names}
    is_public = config.public_url is not None or config.tunnel is not None
    with_tokens = is_public and config.stream_auth != "none"
    if with_tokens and config.transport is not None:
        _check_credentials(providers.values(), config)
    if config.verify == "off":
        return providers
    able = {
        name: each for name, each in providers.items() if each.can_verify() or (with_tokens and _has_password(each))
    }
    or_off = "; or, if anybody who finds the URL may start calls at your cost: --verify off"
    if config.verify == "enforce":
        or_off = ""
    if config.transport is None and (is_public or config.verify == "enforce"):
        if not able:
            raise ConfigError(
                "no provider's webhooks can be checked, for no provider's secret is set",
                hint=f"set one in the environment or in {config.dotenv_place}: "
                f"{', '.join(each.credential_names[0] for each in providers.values() if each.signs)}{or_off}",
            )
        providers = able
    for provider in providers.values():
        if provider.name in able:
            with suppress(SignatureError):
                # The request has no signature; a malformed secret raises ConfigError now, not at the first call.
                provider.verify(WebhookRequest("POST", "http://localhost/"), now=0.0)
        elif config.verify == "enforce" and not provider.signs:
            checked = "stream tokens are checked all the same"
            if not provider.has_webhook:
                checked = f"{provider.credential_names[0]} is checked on a public address (-x)"
            raise ConfigError(
                f"{provider.title} signs nothing, so --verify enforce would refuse all of its calls",
                hint=f"serve a provider that signs, such as -t twilio, or leave --verify out: {checked}",
            )
        elif provider.signs and (is_public or config.verify == "enforce"):
            name = provider.credential_names[0]
            when = "with --verify enforce" if config.verify == "enforce" else "on a public address"
            raise ConfigError(
                f"{when} {provider.title}'s webhooks are checked, and {name} is not set",
                hint=f"it is {provider.secret_place}; set it in the environment or in {config.dotenv_place}{or_off}",
            )
    return providers


def _check_credentials(providers: Iterable[Server], config: RunConfig) -> None:
    """Make sure that those can get in who are given no stream token, for they send no webhook."""
    for provider in providers:
        name = next(iter(provider.credential_names), "")
        if not provider.has_webhook and not _has_password(provider):
            raise ConfigError(
                f"a public address needs a password for {provider.title}'s streams, and {name} is not set",
                hint=f"set {name} in the environment or in {config.dotenv_place}, and in {provider.title}",
            )


def _has_password(provider: Server) -> bool:
    """Whether a provider that sends no webhook is known by the password that its streams carry."""
    return not provider.has_webhook and bool(provider.credential(provider.credential_names[0]))


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """
    The call of a stream token.

    Attributes:
        verified: Whether it was issued to a provider with a signature, or to a key's holder.
        dialled: The token of the call if we placed it; else empty.
        nonce: What no other token has.
        expires: Until when it is valid, in Unix time.
    """

    call: Call
    verified: bool
    dialled: str = ""
    nonce: str = field(default="", compare=False)
    expires: int = field(default=0, compare=False)


class StreamTokens:
    """
    Issues and checks stream tokens: a call, an expiry time, and a signature over both.

    A token says everything that a stream's server has to know of the call's webhook, so the two may come to different
    servers of a fleet. Used tokens are remembered until they expire, so memory is bounded by the rate of calls.

    Attributes:
        on_used: Called with each token's number and expiry time once it is used; with 0 once it is given back.
    """

    def __init__(self, seals: Seals | None = None, *, now: Callable[[], float] = time.time) -> None:
        self.on_used: Callable[[str, float], None] = lambda nonce, expires: None
        self._seals = seals or Seals()
        self._now = now
        self._used: OrderedDict[str, float] = OrderedDict()

    def issue(self, call: Call, *, verified: bool = True, dialled: str = "", ttl_s: float = TOKEN_TTL_S) -> str:
        """
        Return a token for one stream of `call`; its characters are ``A-Za-z0-9_-.``.

        Args:
            verified: As :attr:`TokenClaims.verified`.
            dialled: As :attr:`TokenClaims.dialled`.
            ttl_s: For how many seconds it is valid.
        """
        fields = [getattr(call, name) for name in _CLAIMS]
        claims = [*fields, dialled, verified, int(self._now() + ttl_s), secrets.token_hex(8)]
        return self._seals.seal("stream", claims)

    def redeem(self, token: str, provider: str) -> TokenClaims:
        """
        Return the claims of `token`, which is then used up.

        Raises:
            TokenError: If it is forged, for another provider, expired, or used.
        """
        claims = self._seals.open("stream", token)
        if claims is None:
            others = ", nor by another one with its secret" if self._seals.is_shared else ""
            raise TokenError(f"the stream token was not made by this server{others}")
        try:
            *fields, dialled, verified, expires, nonce = claims
            call = Call(**dict(zip(_CLAIMS, fields, strict=True)))
        except ValueError as error:
            raise TokenError("the stream token was made by another version of wsvoice") from error
        now = self._now()
        if call.provider != provider:
            raise TokenError(f"the stream token is for {call.provider}, not for {provider}")
        if now > expires:
            raise TokenError(f"the stream token expired {now - expires:.0f} s ago")
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if nonce in self._used:
            raise TokenError("the stream token was used before")
        self.note_used(nonce, expires)
        return TokenClaims(call, verified, dialled, nonce, expires)

    def give_back(self, claims: TokenClaims) -> None:
        """Let a token be used after all: its stream was turned away for want of a place, and may find one."""
        self.note_used(claims.nonce, 0)

    def left_s(self, claims: TokenClaims) -> float:
        """Return for how many seconds a token is still valid."""
        return max(0.0, claims.expires - self._now())

    def note_used(self, nonce: str, expires: float) -> None:
        """Note an event of :attr:`on_used`, here or in a server that this one has taken over from."""
        if expires:
            self._used[nonce] = expires
        else:
            self._used.pop(nonce, None)
        self.on_used(nonce, expires)

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over has to know, as JSON has it."""
        return {"used": list(self._used.items())}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from."""
        for nonce, expires in state.get("used", ()):
            self.note_used(nonce, expires)


@dataclass(slots=True)
class _KnownCall:
    """A call whose webhook was answered."""

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
    Remembers signed webhooks to refuse replays, because most providers do not sign the time.

    A webhook is remembered once it was answered successfully, so that a failed one can be retried. After that the same
    signature is accepted once more each time the stream of its call has ended while the call continues: Twilio sends
    identical fields again when a document redirects to the same address. A call may do so for as long as it can last,
    :data:`REPEAT_AGE_S` from its first webhook, and :data:`REPEAT_LIMIT` times; a repeat renews neither limit. An
    idempotency token (Twilio's ``I-Twilio-Idempotency-Token``) is not signed, so it proves nothing; but a request that
    repeats the token as well is refused as a replay.

    So somebody who captured a webhook can use it for the rest of its call, and once more when it is forgotten after
    :data:`REPLAY_WINDOW_S`.

    Only verified calls are recorded, so memory is bounded by their rate and by :data:`REPLAY_ENTRIES`.

    Attributes:
        on_event: Called with what is noted: the name, and what :meth:`apply` has to be given with it elsewhere.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self.on_event: Callable[[str, list[str]], None] = lambda name, arguments: None
        self._now = now
        # By digest of the signature: when it was first answered, and how many streams of its call had ended when it was
        # last answered.
        self._answered: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        # Digests of signature and idempotency token together: when.
        self._requests: OrderedDict[bytes, float] = OrderedDict()
        self._calls: OrderedDict[CallKey, _KnownCall] = OrderedDict()
        self._under_way: set[bytes] = set()

    @contextmanager
    def admit(self, key: str, request_token: str | None, call: CallKey) -> Iterator[Callable[[], None]]:
        """
        Admit a webhook while the context lasts; it yields a function to call once the answer is a success.

        Args:
            key: Identical in every repetition, such as the signature.
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
        try:
            yield partial(self._remember, seen, request, call)
        finally:
            self._under_way.discard(seen)

    def note(self, key: str, request_token: str | None, call: CallKey) -> None:
        """Note a webhook that was answered, and that somebody else has admitted; arguments as of :meth:`admit`."""
        self._forget()
        self._remember(_digest(key), _digest(f"{key}\n{request_token}"), call)

    async def wait_for_stream_end(self, key: str, call: CallKey, timeout_s: float) -> None:
        """Wait for a call's stream to end if its webhook is repeated: the webhook may have overtaken that end."""
        known = self._calls.get(call)
        if known is None or not known.streams or known.is_over or _digest(key) not in self._answered:
            return
        known.idle = known.idle or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await known.idle.wait()

    def stream_started(self, call: CallKey) -> None:
        """Note that a stream of `call` was accepted."""
        self.on_event("stream_started", [*call])
        if (known := self._calls.get(call)) is not None:
            known.streams += 1

    def stream_ended(self, call: CallKey) -> None:
        """Note that a stream of `call` was closed."""
        self.on_event("stream_ended", [*call])
        if (known := self._calls.get(call)) is not None and known.streams:
            known.streams -= 1
            known.ended_streams += 1
            known.ended_at = self._now()
            if known.idle is not None and not known.streams:
                known.idle.set()
                known.idle = None

    def call_ended(self, call: CallKey) -> None:
        """Note that the provider reported the end of `call`."""
        self.on_event("call_ended", [*call])
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

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over on this machine has to know, as JSON has it; times are monotonic."""
        calls = [
            [*key, each.first_at, each.repeats, each.streams, each.ended_streams, each.ended_at, each.is_over]
            for key, each in self._calls.items()
        ]
        answered = [(seen.hex(), *each) for seen, each in self._answered.items()]
        return {
            "answered": answered,
            "requests": [(seen.hex(), at) for seen, at in self._requests.items()],
            "calls": calls,
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from."""
        for seen, first_at, ended_streams in state.get("answered", ()):
            self._answered[bytes.fromhex(seen)] = (first_at, ended_streams)
        for seen, at in state.get("requests", ()):
            self._requests[bytes.fromhex(seen)] = at
        for provider, call_id, first_at, repeats, streams, ended_streams, ended_at, is_over in state.get("calls", ()):
            known = _KnownCall(first_at, repeats, streams, ended_streams, ended_at, is_over)
            self._calls[provider, call_id] = known

    def apply(self, name: str, arguments: list[str]) -> None:
        """Note what was noted in the server that this one has taken over from: an event of :attr:`on_event`."""
        *_, provider, call_id = arguments
        if name == "answered":
            self._remember(bytes.fromhex(arguments[0]), bytes.fromhex(arguments[1]), (provider, call_id))
        elif name == "stream_started":
            self.stream_started((provider, call_id))
        elif name == "stream_ended":
            self.stream_ended((provider, call_id))
        elif name == "call_ended":
            self.call_ended((provider, call_id))

    def _remember(self, seen: bytes, request: bytes, call: CallKey) -> None:
        self.on_event("answered", [seen.hex(), request.hex(), *call])
        now = self._now()
        known = self._calls.setdefault(call, _KnownCall(first_at=now))
        self._calls.move_to_end(call)
        known.repeats += seen in self._answered
        first_at, _ = self._answered.get(seen, (now, 0))
        self._answered[seen] = (first_at, known.ended_streams)
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


class Authenticator:
    """
    Checks that webhooks and streams come from whom they claim to.

    Args:
        chosen_provider: The provider that was chosen by name, whose webhooks are accepted even if it signs nothing.
        fleet: The servers that share tokens, and maybe what they remember; ``None`` for this one alone.
    """

    def __init__(self, verify: Verify, *, chosen_provider: str | None = None, fleet: Fleet | None = None) -> None:
        self.tokens = StreamTokens(fleet.seals if fleet is not None else None)
        self.replays = ReplayGuard()
        self.verify = verify
        self._chosen_provider = chosen_provider
        self._shared = fleet.memory if fleet is not None else None
        self._shared_replays = fleet.replays if fleet is not None else None

    async def redeem(self, token: str, provider: str) -> TokenClaims:
        """Return the claims of a stream token, which is then used up, in a fleet at all servers; as the tokens do."""
        claims = self.tokens.redeem(token, provider)
        if self._shared is not None:
            is_first = await self._shared.take(f"token:{digest(claims.nonce)}", self.tokens.left_s(claims) + 1)
            if is_first is False:
                raise TokenError("the stream token was used before, at another server")
        return claims

    async def give_back(self, claims: TokenClaims | None) -> None:
        """Let a token be used after all; as :meth:`StreamTokens.give_back`."""
        if claims is None:
            return
        self.tokens.give_back(claims)
        if self._shared is not None:
            await self._shared.give_back(f"token:{digest(claims.nonce)}")

    def stream_started(self, call: CallKey) -> None:
        """Note that a stream of `call` was accepted here."""
        self.replays.stream_started(call)
        if self._shared_replays is not None:
            self._shared_replays.stream_started(call)

    def stream_ended(self, call: CallKey) -> None:
        """Note that a stream of `call` was closed here."""
        self.replays.stream_ended(call)
        if self._shared_replays is not None:
            self._shared_replays.stream_ended(call)

    def call_ended(self, call: CallKey) -> None:
        """Note that the provider reported the end of `call`."""
        self.replays.call_ended(call)
        if self._shared_replays is not None:
            self._shared_replays.call_ended(call)

    def verifies(self, provider: Server) -> bool:
        """Whether this provider's webhooks are verified."""
        return self.verify != "off" and provider.can_verify()

    def check_webhook(self, provider: Server, request: WebhookRequest, *, is_public: bool) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless this webhook comes from the provider.

        Args:
            provider: The expected sender.
            request: With the URL that the provider saw.
            is_public: Whether it came by a public address, where unverifiable webhooks are refused.
        """
        if self.verifies(provider):
            _verify(provider, request)
        elif is_public and self.verify != "off" and (provider.signs or provider.name != self._chosen_provider):
            why = f"{provider.title} signs nothing, so its webhooks cannot be verified"
            mend = f"serve it by name with -t {provider.name},"
            if provider.signs:
                secret = provider.credential_names[0]
                why = f"{provider.title}'s webhooks cannot be verified, for {secret} is not set"
                mend = f"set {secret} and start"
            hint = f"{mend} with -x and the public host; or take them unverified with --verify off"
            raise SignatureError(why, hint=hint)

    @asynccontextmanager
    async def admit(self, provider: Server, request: WebhookRequest, call_id: str) -> AsyncIterator[Callable[[], None]]:
        """
        Admit a verified webhook unless it is a replay; see :meth:`ReplayGuard.admit`.

        Raises:
            SignatureError: If it is a replay.
        """
        if not self.verifies(provider):
            yield lambda: None
            return
        key, request_token = provider.replay_key(request)
        call = (provider.name, call_id)
        if self._shared_replays is not None:
            until = time.monotonic() + STREAM_END_WAIT_S
            admitted = await self._shared_replays.admit(key, request_token, call, until=until)
            if admitted is not None:
                async with admitted as note:

                    def succeed_everywhere() -> None:
                        note()
                        self.replays.note(key, request_token, call)

                    yield succeed_everywhere
                return
        await self.replays.wait_for_stream_end(key, call, STREAM_END_WAIT_S)
        with self.replays.admit(key, request_token, call) as succeed:
            yield succeed

    def check_upgrade(self, provider: Server, request: WebhookRequest) -> str | None:
        """
        Return the form of the URL that the upgrade's signature covers; ``None`` if upgrades are not checked.

        Raises:
            SignatureError: If no form matches. The providers' documents contradict each other on what they sign, so
                callers refuse the stream only with ``--verify enforce``.
        """
        return provider.verify_upgrade(request, now=time.time()) if self.verifies(provider) else None


def _verify(provider: Server, request: WebhookRequest) -> None:
    """Verify a webhook; the URL of a site may be signed with or without its slash, but is always requested with it."""
    now = time.time()
    try:
        provider.verify(request, now=now)
    except SignatureError:
        parts = urlsplit(request.url)
        if parts.path == "/":
            with suppress(SignatureError):
                provider.verify(replace(request, url=parts._replace(path="").geturl()), now=now)
                return
        raise


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
