"""Signatures that are an HMAC over a URL: the forms in which companies sign URLs, and comparing in constant time."""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from wsvoice.providers.fields import read_basic

#: Pairs of names and values, in their order, repeated names included.
Fields = Iterable[tuple[str, str]]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?([^/?#]*?)(?::(\d*))?([/?][^#]*)?(?:#.*)?", re.DOTALL)


class SignedUrl(NamedTuple):
    """A URL in the parts that signatures differ in; neither user info nor fragment is ever signed."""

    scheme: str
    host: str
    port: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> SignedUrl:
        """Take a URL apart; by hand, for a stranger's may be none that a library reads."""
        match = _URL.fullmatch(url)
        if match is None:
            return cls("", "", "", url, "")
        scheme, host, port, rest = match.groups()
        path, mark, query = (rest or "").partition("?")
        return cls(scheme, host, port or "", path, mark + query)

    def other_port(self) -> SignedUrl:
        """The same URL without its port, or with the port that it means."""
        default = "443" if self.scheme in ("https", "wss") else "80"
        return self._replace(port="" if self.port else default)

    def other_slash(self) -> SignedUrl:
        """The same URL without its trailing slash, or with one."""
        return self._replace(path=self.path[:-1] if self.path.endswith("/") else self.path + "/")

    def forms(self, schemes: Iterable[str], *, ports: bool = True) -> Iterator[tuple[str, SignedUrl]]:
        """
        Every form of this URL that a company may have signed, with its name, the likeliest first.

        Args:
            schemes: With each of these.
            ports: Whether the port may be left out, or added.
        """
        slash = "without its trailing slash" if self.path.endswith("/") else "with a trailing slash"
        port = f"without :{self.port}" if self.port else "with :443"
        for scheme in schemes:
            exact = self._replace(scheme=scheme)
            yield f"the {scheme} URL", exact
            yield f"the {scheme} URL {slash}", exact.other_slash()
            if ports:
                yield f"the {scheme} URL {port}", exact.other_port()
                yield f"the {scheme} URL {port} and {slash}", exact.other_slash().other_port()

    def __str__(self) -> str:
        if not self.scheme:
            return self.path
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{self.host}{port}{self.path}{self.query}"


def hmac_base64(secret: str, text: str, digest: str) -> str:
    """Return the HMAC of `text` in base64; `digest` is the hash's name."""
    return b64encode(hmac_bytes(secret, text.encode("utf-8", "surrogatepass"), digest)).decode("ascii")


def hmac_bytes(secret: str, content: bytes, digest: str) -> bytes:
    """Return the HMAC of `content`; `digest` is the hash's name."""
    return hmac.digest(secret.encode("utf-8", "surrogateescape"), content, digest)


def is_same(ours: str, theirs: str) -> bool:
    """Whether two texts are the same, in constant time; a stranger's may hold anything."""
    return hmac.compare_digest(ours.encode("utf-8", "surrogatepass"), theirs.encode("utf-8", "surrogatepass"))


def has_password(header: str, user: str, password: str) -> bool:
    """Whether an ``Authorization`` header carries both, in a time that tells nothing of either; no `user` is any."""
    given, secret = read_basic(header)
    return is_same(user or given, given) & is_same(password, secret)
