"""
Asking for answer documents and reading them as a company would: the one walk through TwiML and the languages like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import urlunsplit
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser, tostring

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.call import Call
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import (
    Callback,
    Document,
    Finding,
    Hazard,
    Level,
    NoStream,
    Occasion,
    Redirect,
    Simulator,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.fields import broken, shown
from wsvoice.providers.hazards import JSON_HAZARDS
from wsvoice.providers.urls import form_request, read_callback, read_stream_url

#: What an answer means that turns a call away as busy.
BUSY = (
    "the call was turned away as busy: every place is taken, a limit is reached (of its number, of the day,"
    " --max-lag), or the server is stopping; the server's log says which"
)
#: Characters of what is told of a verb, and of a message with which a call is turned away.
WORDS_LIMIT, MESSAGE_LIMIT = 60, 180


@dataclass(frozen=True, slots=True)
class Reading:
    """What goes along while a document is read: where it came from, and what the company would dislike so far."""

    base_url: str = ""
    findings: list[Finding] = field(default_factory=list)

    def found(self, level: Level, message: str, check: str = "W3") -> None:
        """Note what the company would dislike."""
        self.findings.append(Finding(check, level, message))


class XmlSimulator(Simulator):
    """A company whose webhook is answered with XML. By itself it is a plain dialect of TwiML."""

    hazards: ClassVar[Sequence[Hazard]] = JSON_HAZARDS
    #: Bytes of a document; beyond is Twilio's error 11750: https://www.twilio.com/docs/api/errors/11750
    document_limit: ClassVar[int] = 64 * 1024
    #: What is looked for, for the error of a document that lacks it.
    stream_element: ClassVar[str] = "<Connect><Stream>"
    #: The element around a stream, which holds it alone; empty where a stream is a verb itself.
    stream_parents: ClassVar[tuple[str, ...]] = ("Connect",)
    #: The attribute that holds a stream's URL, and the element of a custom parameter.
    url_attribute: ClassVar[str] = "url"
    parameter_element: ClassVar[str] = "Parameter"
    #: Attributes that ``<Stream>`` has; empty where it may have any.
    stream_attributes: ClassVar[frozenset[str]] = frozenset()
    #: Characters of a custom parameter's name and value together; 0 for no limit.
    parameter_limit: ClassVar[int] = 0
    #: The attribute that names a stream's status callback.
    status_callback: ClassVar[str] = "statusCallback"
    #: Elements that say or play something.
    messages: ClassVar[frozenset[str]] = frozenset({"Say", "Play"})
    #: Elements that connect the call to somebody else.
    transfers: ClassVar[frozenset[str]] = frozenset({"Dial"})
    #: Whether the query of a stream's URL is dialled.
    keeps_query: ClassVar[bool] = True

    def webhook(self, call: Call, url: str, *, method: str = "POST", now: float = 0.0) -> WebhookRequest:
        return self.request(url, method, self.webhook_fields(call, None, first_status(call), now), now)

    def next_webhook(
        self, call: Call, callback: Callback, occasion: Occasion, *, answered: bool = True, now: float = 0.0
    ) -> WebhookRequest:
        status = "in-progress" if answered else first_status(call)
        return self.request(callback.url, callback.method, self.webhook_fields(call, occasion, status, now), now)

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest:
        fields = self.stream_fields(call, status, name, error, now)
        return self.request(callback.url, callback.method, fields, now)

    def stream_fields(self, call: Call, status: StreamStatus, name: str, error: str, now: float) -> dict[str, Any]:
        """Return the fields of a request that tells a stream's status."""
        raise NotImplementedError

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        """Return the fields of a request for a document: the first one or, on an `occasion`, the next."""
        raise NotImplementedError

    def request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        """Return a webhook that carries `fields`, not yet signed."""
        return form_request(url, method, fields)

    def read_answer(self, body: bytes, content_type: str, *, base_url: str = "", first: bool = True) -> Document:
        reading = Reading(base_url)
        verbs = list(self.read_response(body, content_type, reading))
        skipped: list[str] = []
        for index, verb in enumerate(verbs):
            stream = self.find_stream(verb)
            if stream is not None:
                later = verbs[index + 1 :]
                return replace(self.read_stream(stream, verb, later, reading), skipped=skipped)
            if verb.tag == "Redirect":
                callback = self.read_redirect(verb, base_url)
                if callback is None:
                    raise broken("bad-url", "<Redirect> names no URL")
                return Redirect(callback, skipped)
            if _hangs_up(verb):
                told = [each for each in verbs[:index] if each.tag in self.messages]
                return replace(turned_away(_words(told[0])) if told else _read_hang_up(verb), skipped=skipped)
            # The call that a document begins with is answered in the end, whoever is dialled before.
            if verb.tag in self.transfers and not first:
                to = ", ".join(text for each in verb.itertext() if (text := each.strip()))
                return NoStream("transferred", to[:WORDS_LIMIT] or "nobody", skipped)
            skipped.append(self.describe(verb))
        return NoStream("done", skipped=skipped, reason=self.explain_no_stream(verbs))

    def read_response(self, body: bytes, content_type: str, reading: Reading) -> Element:
        """
        Return the root of a document.

        Raises:
            RemoteProtocolError: Of kind ``too-large``, ``bad-xml`` or ``bad-content-type``.
        """
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type not in ("text/xml", "application/xml"):
            reading.found("warn", f"the answer's type is {shown(media_type)}; send application/xml")
        return read_root(body, self.document_limit)

    def read_redirect(self, verb: Element, base_url: str) -> Callback | None:
        """Return where a ``<Redirect>`` leads."""
        return read_callback("".join(verb.itertext()), verb.get("method"), base_url, "<Redirect>")

    def find_stream(self, verb: Element) -> Element | None:
        """Return the ``<Stream>`` that a verb opens."""
        if not self.stream_parents:
            return verb if verb.tag == "Stream" else None
        return verb.find("Stream") if verb.tag in self.stream_parents else None

    def read_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> StreamRequest:
        """
        Return what `stream` asks for, which stands in `verb`, before the verbs `later`.

        Raises:
            RemoteProtocolError: If the company could not open it.
        """
        then: list[str] = []
        for each in later:
            # Where the call ends anyway, nothing of it is news.
            if _hangs_up(each):
                break
            then.append(self.describe(each))
        url = self.read_url(stream, reading)
        parameters = self.read_parameters(stream, reading)
        inbound, outbound = self.read_formats(stream, reading)
        if unknown := sorted(set(stream.keys()) - self.stream_attributes) if self.stream_attributes else []:
            names = ", ".join(unknown)[:WORDS_LIMIT]
            reading.found("warn", f"<{stream.tag}> has attributes that {self.title} does not know: {names}")
        if verb is not stream and len(verb) > 1:
            reading.found("fail", f"<{verb.tag}> holds {len(verb)} nouns; only one is allowed")
        self.judge_stream(stream, verb, later, reading)
        rest = Element("Response")
        rest.extend(later)
        status = self.status_callback
        method = stream.get(f"{status.removesuffix('Url')}Method")
        return StreamRequest(
            url=url,
            parameters=parameters,
            format=inbound,
            outbound_format=outbound,
            headers=self.stream_headers(stream),
            then=then,
            findings=reading.findings,
            reconnects=self.reconnects(stream),
            name=stream.get("name", ""),
            status_callback=_callback(stream.get(status), method, reading, f"<{stream.tag} {status}>"),
            action=None
            if verb is stream
            else _callback(verb.get("action"), verb.get("method"), reading, f"<{verb.tag} action>"),
            rest=tostring(rest) if then else b"",
        )

    def read_url(self, stream: Element, reading: Reading) -> str:
        """Return the URL that the company would dial."""
        written = stream.get(self.url_attribute, "").strip()
        url = read_stream_url(written, reading.base_url)
        if url.scheme == "ws":
            reading.found("warn", f"the stream's URL is ws://; {self.title} refuses all but wss://")
        return urlunsplit((url.scheme, url.netloc, url.path, url.query if self.keeps_query else "", ""))

    def read_parameters(self, stream: Element, reading: Reading) -> dict[str, str]:
        """Return the custom parameters that the start message will repeat."""
        parameters = {}
        for parameter in stream.findall(self.parameter_element):
            name, value = parameter.get("name", ""), parameter.get("value", "")
            if not name:
                reading.found("warn", f"a <{self.parameter_element}> has no name")
                continue
            if self.parameter_limit and len(name) + len(value) > self.parameter_limit:
                limit = self.parameter_limit
                reading.found("fail", f"the parameter {shown(name)} is longer than {limit} characters")
            parameters[name] = value
        return parameters

    def read_formats(self, stream: Element, reading: Reading) -> tuple[AudioFormat, AudioFormat | None]:
        """Return the formats of the caller's audio and of the bot's; ``None`` where they are the same."""
        return PCMU_8K, None

    def stream_headers(self, stream: Element) -> dict[str, str]:
        """Return headers that the document wants on the upgrade."""
        return {}

    def reconnects(self, stream: Element) -> bool:
        """Whether the company dials the stream again when the bot closes it."""
        return False

    def judge_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> None:
        """Note what the company would dislike about a stream."""

    def describe(self, verb: Element) -> str:
        """Say what a verb does, in a few words."""
        text = _words(verb)
        if verb.tag in ("Pause", "Wait"):
            text = f"{verb.get('length', '1')[:WORDS_LIMIT]} s"
        elif verb.tag in ("Start", "Connect"):
            text = ", ".join(noun.tag for noun in verb)
        elif verb.tag == "Hangup":
            text = f"in {verb.get('schedule', '0')[:WORDS_LIMIT]} s"
        words = f"{verb.tag}: {text}" if text else verb.tag
        return words if len(words) <= WORDS_LIMIT else words[: WORDS_LIMIT - 3] + "..."

    def explain_no_stream(self, verbs: Sequence[Element]) -> str:
        """Say why a document opens no stream."""
        if not verbs:
            return "the answer holds nothing: an empty <Response> ends the call"
        for verb in verbs:
            if verb.tag in self.stream_parents:
                inside = _tags(verb) or "nothing"
                return f"<{verb.tag}> holds {inside[:WORDS_LIMIT]}; it needs a <Stream>"
        return f"the answer holds {_tags(verbs)[:WORDS_LIMIT]}, but no {self.stream_element}"


def read_root(body: bytes, limit: int) -> Element:
    """
    Return the root of a document, which may have as many bytes as `limit`.

    Raises:
        RemoteProtocolError: Of kind ``too-large`` or ``bad-xml``.
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
    if root.tag != "Response":
        raise broken("bad-xml", f"the answer's root is {shown(root.tag)}; it must be Response")
    return root


def first_status(call: Call) -> str:
    """Return what the first webhook says of a call's status."""
    return "in-progress" if call.direction == "outbound" else "ringing"


class _Builder(TreeBuilder):
    """Builds the tree, and stops at a document type: entities are how a small document becomes a huge one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise broken("bad-xml", "the answer has a DOCTYPE; leave it out")


def _callback(written: str | None, method: str | None, reading: Reading, what: str) -> Callback | None:
    """Return an address that is asked or told; one that is no address is noted, and does without."""
    try:
        return read_callback(written, method, reading.base_url, what)
    except RemoteProtocolError as error:
        reading.found("warn", error.message)
        return None


def _hangs_up(verb: Element) -> bool:
    return verb.tag == "Reject" or (verb.tag == "Hangup" and not verb.get("schedule"))


def _read_hang_up(verb: Element) -> NoStream:
    reason = verb.get("reason", "")
    if reason == "busy":
        return NoStream("hung-up", reason=BUSY, kind="rejected")
    if verb.tag == "Reject" or reason:
        why = reason[:WORDS_LIMIT] or "rejected"
        return NoStream("hung-up", reason=f"the bot turned the call away with <{verb.tag}> ({why})", kind="rejected")
    return NoStream("hung-up", reason="the bot hung up with <Hangup> before any stream", kind="hung-up")


def turned_away(message: str) -> NoStream:
    """Return what a document comes to that says or plays a `message`, and ends the call."""
    return NoStream("hung-up", reason=f"turned away: {message[:MESSAGE_LIMIT]}", kind="rejected")


def _words(verb: Element) -> str:
    return " ".join("".join(verb.itertext()).split())


def _tags(elements: Iterable[Element]) -> str:
    return ", ".join(f"<{each.tag}>" for each in elements)
