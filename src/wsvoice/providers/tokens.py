"""
JSON Web Tokens, with which a company signs its webhooks, and its API wants to be asked: https://www.rfc-editor.org/rfc/rfc7519

A key is a text, for HS256, or one half of an RSA key, for RS256.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from wsvoice.errors import ConfigError
from wsvoice.providers.base import WebhookRequest

# The library looks at the clock, and a reader of tokens is told the time instead.
_UNTIMED: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}


@cache
def read_key(text: str, name: str) -> RSAPrivateKey | None:
    """
    Return a private key; ``None`` if there is none.

    Args:
        text: In PEM; its ends of lines may be written as ``\\n``, as some files of settings need it.
        name: The variable that holds it.

    Raises:
        ConfigError: If it is no RSA key.
    """
    if not text:
        return None
    try:
        key = load_pem_private_key(text.replace("\\n", "\n").encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, RSAPrivateKey):
        return key
    hint = f'it takes the text of the file, not its path: {name}="$(cat private.key)"'
    raise ConfigError(f"{name} is not an RSA key in PEM", hint=hint)


@cache
def new_key() -> str:
    """Return a private key for test calls in PEM; it takes a moment to make, so all of a process have the same."""
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def bearer_header(claims: Mapping[str, Any], key: str | RSAPrivateKey, *, about: str) -> dict[str, str]:
    """
    Return the header that carries a token.

    Args:
        claims: What it says.
        key: What signs it.
        about: What no other token is about, from which its id follows.
    """
    jti = str(uuid.uuid5(uuid.NAMESPACE_URL, about))
    return {"authorization": f"Bearer {jwt.encode({**claims, 'jti': jti}, key, _algorithm(key))}"}


def read_bearer(request: WebhookRequest, key: str | RSAPublicKey) -> dict[str, Any] | None:
    """
    Return the claims of a request's token; ``None`` if it has none that is signed with `key`.

    Whether it is too old is for the caller to say.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not key:
        return None  # Anybody can sign with nothing.
    try:
        return jwt.decode(token if scheme.lower() == "bearer" else "", key, [_algorithm(key)], options=_UNTIMED)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None


def _algorithm(key: object) -> str:
    return "HS256" if isinstance(key, str) else "RS256"
