"""What this server signs for itself, and for the others of its fleet: tokens, and messages between servers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from wsvoice.config import STREAM_SECRET, RunConfig
from wsvoice.errors import ConfigError

#: What is sealed; a seal for one purpose is none for another.
Purpose = Literal["stream", "dialled", "message"]

#: How long a shared secret has to be, in characters: those of ``openssl rand -hex 32`` have 64.
SECRET_LENGTH = 32
#: How many characters of sealed text are read; real ones have far fewer.
TEXT_LIMIT = 32 * 1024
#: How many secrets of servers that this one has taken over from are kept.
FORMER_KEYS = 8


def shared_secrets(config: RunConfig) -> tuple[bytes, ...]:
    """
    Return the secrets that the servers of a fleet share, the one that signs first; none without a fleet.

    Raises:
        ConfigError: If one of them could be guessed.
    """
    written = config.credentials.get(STREAM_SECRET, "")
    if not written:
        return ()
    parts = [each.strip() for each in written.split(",")]
    short = next((each for each in parts if len(each) < SECRET_LENGTH), None)
    # Secrets themselves are never shown.
    if short is not None:
        which = STREAM_SECRET if len(parts) == 1 else f"one of the {len(parts)} secrets in {STREAM_SECRET}"
        raise ConfigError(
            f"{which} has {len(short)} characters, and needs {SECRET_LENGTH} at least",
            hint="make one with `openssl rand -hex 32`, and give all servers the same",
        )
    if weak := next((each for each in parts if len(set(each)) < 8), None):
        raise ConfigError(
            f"{STREAM_SECRET} is {len(weak)} characters of which only {len(set(weak))} differ",
            hint="make one with `openssl rand -hex 32`, and give all servers the same",
        )
    return tuple(each.encode() for each in parts)


class Seals:
    """
    Signs JSON, and opens what was signed with the same secret. What is sealed can be read by whoever has it.

    Attributes:
        is_shared: Whether other servers can open what this one seals.

    Args:
        keys: The secrets: the first signs, all are accepted. One of this process's own if there is none.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self.is_shared = bool(keys)
        self._keys = tuple(keys) or (secrets.token_bytes(32),)
        #: Those that servers which this one has taken over from had for themselves.
        self._former: tuple[bytes, ...] = ()

    def seal(self, purpose: Purpose, content: Any) -> str:
        """Return `content` as text of ``A-Za-z0-9_-.``."""
        # Compressed, because it stands in addresses, which may not be long.
        body = _b64(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9))
        return f"{body}.{_sign(self._keys[0], purpose, body)}"

    def open(self, purpose: Purpose, text: str) -> Any | None:
        """Return what was sealed; ``None`` if it was not sealed for this purpose by one of the secrets' holders."""
        if len(text) > TEXT_LIMIT or not text.isascii():
            return None
        body, _, signature = text.partition(".")
        signed = signature.encode()
        keys = (*self._keys, *self._former)
        if not any(hmac.compare_digest(signed, _sign(key, purpose, body).encode()) for key in keys):
            return None
        # It is signed, so it is well-formed.
        return json.loads(zlib.decompress(base64.urlsafe_b64decode(f"{body}==")))

    def export(self) -> dict[str, Any]:
        """Return the secrets that a server which takes over has to know; a fleet's are in its settings."""
        own = () if self.is_shared else self._keys
        return {"keys": [each.hex() for each in (*own, *self._former)]}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Accept what the server has sealed that this one takes over from, whose :meth:`export` it is."""
        former = (*map(bytes.fromhex, state.get("keys", ())), *self._former)
        self._former = tuple(each for each in dict.fromkeys(former) if each not in self._keys)[:FORMER_KEYS]


def digest(*parts: str) -> str:
    """Return what stands for secrets and ids where they are stored."""
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _sign(key: bytes, purpose: Purpose, body: str) -> str:
    return _b64(hmac.new(key, f"{purpose}\n{body}".encode(), hashlib.sha256).digest()[:16])


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
