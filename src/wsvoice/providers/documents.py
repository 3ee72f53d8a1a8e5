"""
Answer documents: the XML with which a webhook tells a provider what to do with a call.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser, tostring

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Callback, Finding, NoStream, Redirect
from wsvoice.providers.messages import broken, shown

#: What an answer means that turns a call away as busy.
BUSY = "the call was turned away as busy: every place is taken, or the server is stopping"

_WORDS_LIMIT = 60
# What XML 1.0 has no way to write, not even escaped: https://www.w3.org/TR/xml/#charsets
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Line breaks and tabs are escaped because a parser turns bare ones in attributes into spaces.
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)


def escape(value: str) -> str:
    """Return `value` for an attribute or a text; characters that XML cannot hold become U+FFFD."""
    return _UNWRITABLE.sub("\ufffd", value).translate(_ESCAPES)


def element(name: str, attributes: Mapping[str, str] | None = None, *content: str) -> str:
    """Render an element; `attributes` are escaped here, `content` is XML already."""
    head = "".join([name, *(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items())])
    return f"<{head}>{''.join(content)}</{name}>" if content else f"<{head}/>"


def document(root: str) -> str:
    """Render a whole document around the element `root`."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}'


class _Builder(TreeBuilder):
    """Builds the tree, and stops at a document type: entities are how a small document becomes a huge one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise broken("bad-xml", "the answer has a DOCTYPE; leave it out")


def read_document(body: bytes, *, limit: int) -> Element:
    """
    Return the root element of an XML document of at most `limit` bytes.

    Raises:
        RemoteProtocolError: Of kind ``too-large`` or ``bad-xml``, saying what is wrong and where.
    """
    if len(body) > limit:
        raise broken("too-large", f"the answer has {len(body)} bytes; {limit} are allowed")
    if not body.strip():
        raise broken("bad-xml", "the answer is empty")
    parser = XMLParser(target=_Builder())
    try:
        parser.feed(body)
        root = parser.close()
    except ParseError as error:
        line, column = error.position
        what = str(error).partition(":")[0]
        raise broken("bad-xml", f"the answer is not XML: {what} at line {line}, column {column + 1}") from None
    except (LookupError, ValueError) as error:
        raise broken("bad-xml", f"the answer is not XML: {error}") from None
    if not isinstance(root, Element):
        raise broken("bad-xml", "the answer is not XML: it has no element")
    return root


def in_words(verb: Element) -> str:
    """Say what a verb of TwiML, or of a language like it, does, in a few words."""
    text = " ".join("".join(verb.itertext()).split())
    if verb.tag == "Pause":
        text = f"{verb.get('length', '1')[:_WORDS_LIMIT]} s"
    elif verb.tag in ("Start", "Connect"):
        text = ", ".join(noun.tag for noun in verb)
    words = f"{verb.tag}: {text}" if text else verb.tag
    return words if len(words) <= _WORDS_LIMIT else words[: _WORDS_LIMIT - 3] + "..."


def read_stream_url(written: str, base_url: str) -> SplitResult:
    """
    Return the parts of a stream's URL, which is ``wss://`` or ``ws://``.

    Args:
        written: As it stands in the document.
        base_url: Where the document came from, which a relative URL starts at; may be empty.

    Raises:
        RemoteProtocolError: Of kind ``bad-url``.
    """
    if not written:
        raise broken("bad-url", "<Stream> has no url")
    try:
        url = urlsplit(written)
        if not url.scheme:
            if not base_url:
                raise broken("bad-url", f"the stream's url {shown(written)} is relative; write it in full")
            url = urlsplit(urljoin(base_url, written))
            url = url._replace(scheme={"https": "wss", "http": "ws"}.get(url.scheme, url.scheme))
        usable = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\x00-\x20\x7f]", written):
        raise broken("bad-url", f"the stream's url {shown(written)} is not a URL")
    if url.scheme not in ("wss", "ws"):
        raise broken("bad-url", f"the stream's url starts with {shown(url.scheme)}; it must be wss")
    return url


def read_callback(written: str | None, method: str | None, base_url: str, what: str) -> Callback | None:
    """
    Return the address that an attribute or a text names; ``None`` if it names none.

    Args:
        written: As it stands in the document.
        method: How it is to be requested; POST unless it says GET.
        base_url: Where the document came from, which a relative URL starts at; may be empty.
        what: What names it, for the error.

    Raises:
        RemoteProtocolError: Of kind ``bad-url``.
    """
    written = (written or "").strip()
    if not written:
        return None
    try:
        url = urlsplit(urljoin(base_url, written))
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\x00-\x20\x7f]", written):
        raise broken("bad-url", f"the URL of {what}, {shown(written)}, is no web address")
    return Callback(url.geturl(), "GET" if (method or "").strip().upper() == "GET" else "POST")


def read_status_callback(
    stream: Element, base_url: str, findings: list[Finding], attribute: str = "statusCallback"
) -> Callback | None:
    """Return what ``<Stream>`` wants to be told of what becomes of it; a URL that is none is added to `findings`."""
    method = stream.get(f"{attribute.removesuffix('Url')}Method")
    return _callback_or_finding(stream.get(attribute), method, base_url, f"<Stream {attribute}>", findings)


def read_action(connect: Element, base_url: str, findings: list[Finding]) -> Callback | None:
    """Return what ``<Connect>`` wants to be asked once it is done; a URL that is none is added to `findings`."""
    return _callback_or_finding(connect.get("action"), connect.get("method"), base_url, "<Connect action>", findings)


def _callback_or_finding(
    written: str | None, method: str | None, base_url: str, what: str, findings: list[Finding]
) -> Callback | None:
    try:
        return read_callback(written, method, base_url, what)
    except RemoteProtocolError as error:
        findings.append(Finding("W3", "warn", error.message))
        return None


def read_course(
    verbs: Sequence[Element],
    base_url: str,
    *,
    opens_stream: Callable[[Element], bool],
    words: Callable[[Element], str] = in_words,
) -> Redirect | NoStream | None:
    """
    Return what the first of `verbs` does that changes a call's course; ``None`` if it opens a stream.

    Args:
        verbs: A document's, of TwiML or of a language like it.
        base_url: Where the document came from, which relative URLs start at.
        opens_stream: Tells the verb that opens a stream.
        words: Says what a verb does.

    Raises:
        RemoteProtocolError: Of kind ``bad-url``.
    """
    skipped: list[str] = []
    for verb in verbs:
        if opens_stream(verb):
            return None
        if verb.tag == "Redirect":
            callback = read_callback("".join(verb.itertext()), verb.get("method"), base_url, "<Redirect>")
            if callback is None:
                raise broken("bad-url", "<Redirect> names no URL")
            return Redirect(callback, skipped)
        if verb.tag == "Reject" or (verb.tag == "Hangup" and not verb.get("schedule")):
            return NoStream("hung-up", skipped=skipped)
        if verb.tag == "Dial":
            to = ", ".join(text for each in verb.itertext() if (text := each.strip()))
            return NoStream("transferred", to[:_WORDS_LIMIT] or "nobody", skipped)
        skipped.append(words(verb))
    return NoStream("done", skipped=skipped)


def write_rest(verbs: Sequence[Element]) -> bytes:
    """Return a document of `verbs`; nothing for none."""
    if not verbs:
        return b""
    response = Element("Response")
    response.extend(verbs)
    return tostring(response)


def split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """
    Return `url` without the user and password in it, and the header that carries them on the upgrade; none if none.

    WebSocket clients differ about characters that are escaped in a URL, so none is left to decide.

    https://www.rfc-editor.org/rfc/rfc7617#section-2.1
    """
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = userinfo.partition(":")
    basic = b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode("ascii")
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {basic}"}
