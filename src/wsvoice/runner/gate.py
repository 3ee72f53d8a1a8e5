"""
Who may come in: signed webhooks, stream tokens, and how many calls at once.

A webhook that passes gets a stream token, which is the only way to a stream on a public address. The token is
signed, bound to the call's id, works once and for a minute: long enough for a provider to dial, too short to
be passed on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from wsvoice.call import Call
from wsvoice.config import Verify
from wsvoice.errors import ConfigError, SignatureError, TokenError
from wsvoice.providers.base import Provider, WebhookRequest

#: How long a stream token is good for. Providers dial within seconds; Twilio gives up after 15.
TOKEN_TTL_S = 60
#: How long a seen webhook is remembered, and how many are; whichever ends first.
REPLAY_WINDOW_S = 24 * 3600
REPLAY_ENTRIES = 100_000
#: How long a provider's own retry of the same webhook is let through.
RETRY_WINDOW_S = 30


class TokenMint:
    """
    Makes and checks stream tokens: the call they are for, when they end, and a signature over both.

    The used ones are remembered for as long as they would be valid, so memory is bounded by the rate of calls.
    """

    def __init__(self, *, secret: bytes | None = None, now: Callable[[], float] = time.time) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._now = now
        self._used: OrderedDict[str, float] = OrderedDict()

    def mint(self, call: Call) -> str:
        """Return a token for one stream of `call`; it holds nothing but ``A-Za-z0-9_-.``."""
        claims = [
            call.provider,
            call.call_id,
            call.account_id,
            call.from_number,
            call.to_number,
            call.direction,
            call.control,
            int(self._now()) + TOKEN_TTL_S,
            secrets.token_hex(8),
        ]
        body = _b64(json.dumps(claims, separators=(",", ":")).encode())
        return f"{body}.{self._sign(body)}"

    def redeem(self, token: str, provider: str) -> Call:
        """
        Return the call that `token` was made for, and use the token up.

        Raises:
            TokenError: If it is forged, for another provider, expired, or used.
        """
        body, _, signature = token.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            raise TokenError("the stream token was not made by this server")
        # The signature vouches for the shape of what follows.
        name, call_id, account_id, from_number, to_number, direction, control, expires, nonce = json.loads(_unb64(body))
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
        return Call(
            provider=name,
            call_id=call_id,
            account_id=account_id,
            from_number=from_number,
            to_number=to_number,
            direction=direction,
            control=control,
        )

    def _sign(self, body: str) -> str:
        return _b64(hmac.new(self._secret, body.encode(), hashlib.sha256).digest()[:16])


class ReplayGuard:
    """
    Remembers signed webhooks, because most providers sign no time.

    A provider's own retry repeats an id of its own (Twilio's ``I-Twilio-Idempotency-Token``); it is let
    through for as long as the provider would retry.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # A digest of the signature; when it came; a digest of the retry's id.
        self._seen: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def check(self, key: str, retry_id: str) -> None:
        """Raise :exc:`~wsvoice.errors.SignatureError` if `key` was seen and this is no retry of it."""
        now = self._now()
        while self._seen and (
            len(self._seen) > REPLAY_ENTRIES or next(iter(self._seen.values()))[0] < now - REPLAY_WINDOW_S
        ):
            self._seen.popitem(last=False)
        seen, retry = _digest(key), _digest(retry_id)
        if seen not in self._seen:
            self._seen[seen] = (now, retry)
            return
        first_seen, first_retry = self._seen[seen]
        if not (retry_id and retry == first_retry and now - first_seen <= RETRY_WINDOW_S):
            raise SignatureError("the webhook is a replay: its signature was seen before")


class Capacity:
    """
    How many calls may run at once; checked and reserved in one step.

    A webhook reserves a place for as long as its token is good; the stream takes the place over.
    """

    def __init__(self, limit: int | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._now = now
        self._reserved: dict[tuple[str, str], float] = {}
        self._active = 0

    @property
    def active(self) -> int:
        """How many calls are running."""
        return self._active

    @property
    def reserved(self) -> int:
        """For how many calls a place is kept whose streams may still come."""
        self._forget_expired()
        return len(self._reserved)

    def reserve(self, call: Call) -> bool:
        """Keep a place for `call` until its token expires; false if there is none."""
        self._forget_expired()
        key = (call.provider, call.call_id)
        if key not in self._reserved and self._is_full():
            return False
        self._reserved[key] = self._now() + TOKEN_TTL_S
        return True

    def occupy(self, call: Call | None) -> bool:
        """Start a call, in the place kept for it if there is one; false if there is none."""
        self._forget_expired()
        kept = call is not None and self._reserved.pop((call.provider, call.call_id), None) is not None
        if not kept and self._is_full():
            return False
        self._active += 1
        return True

    def release(self) -> None:
        """End a call that :meth:`occupy` started."""
        self._active -= 1

    def _is_full(self) -> bool:
        return self.limit is not None and self._active + len(self._reserved) >= self.limit

    def _forget_expired(self) -> None:
        now = self._now()
        for key in [key for key, until in self._reserved.items() if until < now]:
            del self._reserved[key]


@dataclass(slots=True)
class Gate:
    """Everything that stands between the internet and a bot."""

    verify: Verify
    tokens: TokenMint
    replays: ReplayGuard
    capacity: Capacity
    #: Set while the process drains: nobody new comes in.
    closed: bool = False

    def check_settings(self, provider: Provider) -> None:
        """Raise :exc:`~wsvoice.errors.ConfigError` if the secret is malformed, or unknown and needed."""
        if self.verify != "off" and provider.can_verify():
            with suppress(SignatureError):
                # No request is signed like this; a secret that is none is told now, and not by the first call.
                provider.verify(WebhookRequest("POST", "http://localhost/"), now=0.0)
        if self.verify == "enforce" and not provider.can_verify():
            if not provider.signs:
                raise ConfigError(
                    f"{provider.title} signs nothing, so --verify enforce would refuse all of its calls",
                    hint="serve a provider that signs, such as -t twilio, or leave --verify out: "
                    "stream tokens are checked all the same",
                )
            name = provider.credential_names[0]
            raise ConfigError(
                f"--verify enforce needs {provider.title}'s signing secret, and {name} is not set",
                hint=f"set {name} in the environment or in .env",
            )

    def check_webhook(self, provider: Provider, request: WebhookRequest) -> None:
        """Raise :exc:`~wsvoice.errors.SignatureError` unless this webhook may start a call."""
        if self.verify == "off" or not provider.can_verify():
            return
        provider.verify(request, now=time.time())
        self.replays.check(*provider.replay_key(request))

    def check_upgrade(self, provider: Provider, request: WebhookRequest) -> str | None:
        """
        Return which form of its URL the upgrade is signed in; ``None`` if that is unknown and does not matter.

        The providers' documents contradict each other on what they sign, so a mismatch turns a stream away
        only with ``--verify enforce``.

        Raises:
            SignatureError: With ``--verify enforce``, if no form matches.
        """
        if self.verify == "off" or not provider.can_verify():
            return None
        try:
            return provider.verify_upgrade(request, now=time.time())
        except SignatureError:
            if self.verify == "enforce":
                raise
            return None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:  # pragma: no cover - signed by us
        raise TokenError("the stream token is damaged") from error
