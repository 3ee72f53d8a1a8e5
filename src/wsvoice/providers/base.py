"""
What a provider is, to the rest of wsvoice.

A provider has two halves. The HTTP half is stateless: plain values in, plain values out; nothing here opens a
socket, reads a clock or looks at the environment. The wire half is one :class:`Stream` object per media
stream, which can play either end, so that the server and the simulated caller share the facts and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import islice
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import parse_qsl

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.call import Call
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.events import Event, StreamError

Level = Literal["warn", "fail"]
#: How far a call has come.
Progress = Literal["answered", "streaming", "ended"]

#: What an answer sends along as custom parameters where a stream's start message does not tell it; the first two
#: names are the ones that pipecat's own parser reads.
CALL_PARAMETERS = ("from_number", "to_number", "direction")


_BOUNDARY = re.compile(r"""boundary="?([0-9A-Za-z'()+_,./:=? -]{1,70})""", re.IGNORECASE)
_PART_NAME = re.compile(rb"""\bname="([^"\r\n]*)\"""", re.IGNORECASE)
#: Parts of a multipart form, and bytes of one part's head, that are read.
_PART_LIMIT, _PART_HEAD_LIMIT = 256, 1024


class Side(Enum):
    """The two ends of a media stream. The carrier connects the WebSocket, the bot accepts it."""

    CARRIER = "carrier"
    BOT = "bot"


@dataclass(frozen=True)
class WebhookRequest:
    """
    A request from the provider: its webhook, or the upgrade of its WebSocket.

    Attributes:
        method: ``GET`` or ``POST``.
        url: The whole URL as the provider saw it (public scheme and host), with its query.
        headers: Header values by lower-case name.
        body: The raw body.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @cached_property
    def form(self) -> list[tuple[str, str]]:
        """The body's form fields, in their order, blank values included; empty for other bodies."""
        content_type = self.headers.get("content-type", "")
        if self.method == "GET" or "json" in content_type:
            return []
        if content_type.lower().startswith("multipart/form-data"):
            return _read_multipart(content_type, self.body)
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    @cached_property
    def query(self) -> list[tuple[str, str]]:
        """The query's fields, in their order, blank values included."""
        # By hand: a stranger's URL may be none that a library reads.
        return parse_qsl(self.url.partition("#")[0].partition("?")[2], keep_blank_values=True)

    @cached_property
    def fields(self) -> dict[str, str]:
        """Query and form as one mapping; the form wins."""
        return dict([*self.query, *self.form])


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to a provider's REST API, ready to be sent."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    basic_auth: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer to a webhook."""

    body: str
    media_type: str = "application/xml"
    status: int = 200
    #: Requests to the provider's API that carry the answer out; where there are some, the body only acknowledges.
    requests: tuple[HttpRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class CallUpdate:
    """
    What a webhook reports about a call that is already known, instead of announcing a new one.

    Attributes:
        call_id: The call; empty where the report names none.
        event: What happened, in the provider's own word, such as ``completed`` or ``streaming.failed``.
        detail: What the report says of it, such as a cause or an error's code; may be empty.
        failed: Whether something went wrong, which is logged as a warning.
        ended: Whether the call is over, so that its place is free.
    """

    call_id: str
    event: str
    detail: str = ""
    failed: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing about a bot that a provider would trip over.

    Attributes:
        id: The check's short name, such as ``W3`` (web), ``M1`` (media), ``E2`` (end of call).
        level: ``fail`` if a real call would break, ``warn`` if it would suffer.
        message: What is wrong, in one line.
    """

    id: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class Callback:
    """
    An address that a document names: to be asked for the next document, or to be told what happens.

    Attributes:
        url: In full.
        method: How it is requested.
    """

    url: str
    method: Literal["GET", "POST"] = "POST"


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """
    What an answer document asks the provider to do: open a media stream.

    Attributes:
        url: The stream's URL as the provider would dial it.
        parameters: Custom parameters that the provider repeats in its start message.
        format: The audio format that the document asks for.
        headers: Headers that the document wants on the upgrade.
        skipped: Verbs before the stream that a test call does not carry out, in words.
        then: Verbs after the stream, carried out once the bot has closed the socket; empty ends the call.
        findings: What the provider would dislike about the document.
        outbound_format: The format of what the bot sends, where it is not `format`.
        reconnects: Whether the provider dials the stream again when the bot closes it.
        name: The stream's name, which its status callbacks repeat.
        status_callback: The address notified when the stream starts, stops or cannot be opened.
        action: What is asked how the call goes on once the bot has closed the socket; `then` is never reached.
        rest: A document of what `then` says in words; empty where it is none of the document's.
    """

    url: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    format: AudioFormat = PCMU_8K
    headers: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    then: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    outbound_format: AudioFormat | None = None
    reconnects: bool = False
    name: str = ""
    status_callback: Callback | None = None
    action: Callback | None = None
    rest: bytes = b""


@dataclass(frozen=True, slots=True)
class Redirect:
    """
    What an answer document asks the provider to do: ask another address for the next one.

    Attributes:
        callback: The address.
        skipped: Verbs before, in words.
    """

    callback: Callback
    skipped: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NoStream:
    """
    What an answer document comes to that neither opens a stream nor leads to another document.

    Attributes:
        how: It hangs up, it connects the call to somebody else, or there is nothing left to do.
        to: Whom the call is connected to.
        skipped: Verbs before, in words.
    """

    how: Literal["hung-up", "transferred", "done"]
    to: str = ""
    skipped: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Quirk:
    """
    A way in which the simulated carrier can be made to behave: what a document leaves open, or users report.

    Attributes:
        default: What it does unless told.
        help: What it changes, in one line.
        choices: The values it takes; empty for any.
    """

    default: str
    help: str
    choices: tuple[str, ...] = ()


class Stream(Protocol):
    """
    One end of one media stream.

    :meth:`send` and :meth:`receive` translate between events and messages and keep what the protocol makes
    both ends keep (ids, counters). They do no I/O.
    """

    side: Side
    #: The format of the carrier's audio; final once :class:`~wsvoice.providers.events.StreamStarted` has passed.
    format: AudioFormat
    #: The format of the bot's audio; the same, but where a provider can be told otherwise.
    outbound_format: AudioFormat

    def send(self, event: Event) -> str | bytes:
        """
        Render `event` as the message that this end sends.

        Raises:
            LocalProtocolError: If this end of this provider has no such message.
        """

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one; whatever the text, nothing else is raised.
        """

    def findings(self) -> list[Finding]:
        """Return, and forget, what was accepted since the last call though the provider would dislike it."""


class Provider(Protocol):
    """
    One telephone company. Constructed with its credentials: values by environment variable name.
    """

    #: As in ``wsvoice run -t NAME``.
    name: str
    #: As the company writes itself.
    title: str
    #: The credentials it knows, by environment variable name, secrets for verification first.
    credential_names: tuple[str, ...]
    #: Whether it signs its webhooks; where it does not, there is nothing to verify.
    signs: bool
    #: How long a piece of audio from the carrier is.
    frame_ms: int
    #: Whether the carrier's audio comes in order; where it does not, it is put in order by its chunk numbers.
    ordered: bool
    #: The method of its webhook unless the user chooses another.
    webhook_method: Literal["GET", "POST"]
    #: Where the user enters the address of the webhook, in the provider's own words.
    webhook_place: str
    #: How much audio of the bot's it queues, in seconds; what comes beyond is thrown away.
    queue_limit_s: float
    #: Whether the stream of a call that we dialled may carry another id than its webhook did.
    renames_dialled_calls: bool
    #: What becomes of marks whose audio is cleared.
    cleared_marks: Literal["returned", "dropped"]
    #: How the simulated carrier can be made to deviate, by name.
    quirks: Mapping[str, Quirk]

    def can_verify(self) -> bool:
        """Whether the secret that webhooks are signed with is known."""

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a webhook has this provider's fields; used where one address serves all."""

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether the first or second message of a stream is this provider's start; where one address serves all."""

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces, or what it reports about one; ``None`` if it concerns no call.

        Only a call is answered with a document, and takes a place.

        Raises:
            RemoteProtocolError: If the request is not this provider's.
        """

    def answer(self, call: Call, stream_url: str) -> Answer:
        """Render the document that makes the provider stream `call` to `stream_url`."""

    def acknowledge(self) -> Answer:
        """Render the answer to a webhook that needs none."""

    def busy(self, call: Call | None = None) -> Answer:
        """Render the document, or the requests for this `call`, that turn a caller away: every place is taken."""

    def read_answer(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest:
        """
        Read an answer document as the provider would.

        Args:
            body: The document.
            content_type: The answer's ``Content-Type``.
            base_url: Where the document came from, which a relative stream URL starts at.
            quirks: What the simulated carrier does where the document leaves it open.

        Raises:
            RemoteProtocolError: If the provider could not open a stream from it.
        """

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless the provider signed this webhook.

        Args:
            request: With the URL that the provider saw, not the one behind the tunnel.
            now: Unix time in seconds.
        """

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return what every repetition of a webhook has in common, and the idempotency token, which only a replay repeats.

        The latter is ``None`` where a provider that signs no time and no nonce sends no such token, so that a call
        which comes back to the same address cannot be told from a replay.
        """

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the URL the upgrade's signature matches, in words.

        Raises:
            SignatureError: If it matches none, or is missing.
        """

    def has_credentials(self, request: WebhookRequest) -> bool:
        """Whether an upgrade carries the credentials that the user gave the provider instead of a stream token."""

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """Return the code under which the provider's debugger shows a stream that did not open."""

    def hang_up(self, call: Call) -> HttpRequest | None:
        """Return the request that ends `call`; ``None`` if closing the stream does, or credentials are missing."""

    def webhook(
        self,
        call: Call,
        url: str,
        *,
        method: str = "POST",
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest:
        """
        Render the webhook that the provider would send for `call`, not yet signed.

        Args:
            call: The call.
            url: The address of its webhook.
            method: How the webhook is requested.
            quirks: What the simulated carrier does where there is a choice.
            now: Unix time in seconds, which some providers tell.
        """

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` with the provider's signature headers."""

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the headers of the provider's WebSocket upgrade to `url`, signed if the secret is known."""

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """
        Invent the credentials of a test call, by environment variable name.

        Args:
            seed: At least 32 random bytes.

        Returns:
            The simulated carrier's, which sign, and the bot's, which verify.
        """

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent a call with ids of the provider's shape; `seed` is at least 32 random bytes."""

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> Stream:
        """Return a new stream's end; `quirks` are for the carrier's."""


def _read_multipart(content_type: str, body: bytes) -> list[tuple[str, str]]:
    """
    Return the fields of a multipart form; files are none, nor is what has no name.

    By hand: the standard library reads parts within parts, as deep as a stranger likes.

    https://www.rfc-editor.org/rfc/rfc7578
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return []
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1].rstrip().encode())
    fields = []
    for part in islice(parts, 1, _PART_LIMIT):
        head, blank, content = part.partition(b"\r\n\r\n")
        name = _PART_NAME.search(head[:_PART_HEAD_LIMIT])
        if blank and name is not None and b"filename" not in head:
            fields.append((name[1].decode("utf-8", "replace"), content.decode("utf-8", "replace")))
    return fields


@runtime_checkable
class AnswersByRequest(Protocol):
    """A provider whose calls can also be answered by a request to its API, instead of by a document."""

    def read_answer_request(
        self, request: WebhookRequest, *, call_id: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | None:
        """
        Read the stream that a request to the provider's API answers a call with; ``None`` if it is another request.

        Args:
            request: As the API gets it.
            call_id: The one call that there is to answer; empty for any.
            quirks: What the simulated carrier does where the request leaves it open.

        Raises:
            RemoteProtocolError: If the provider could not open a stream from it.
        """


@runtime_checkable
class ReportsProgress(Protocol):
    """A provider that tells the webhook how a call goes on."""

    def progress_webhook(
        self,
        call: Call,
        url: str,
        progress: Progress,
        *,
        duration_s: float = 0.0,
        method: str = "POST",
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest | None:
        """
        Render the report that the provider would send to `url`, not yet signed; ``None`` if it sends none.

        Args:
            call: The call.
            url: The address of its webhook.
            progress: What has happened: the call was answered, its stream has started, or it is over.
            duration_s: How long a call that is over was.
            method: How the webhook is requested.
            quirks: What the simulated carrier does where there is a choice.
            now: Unix time in seconds, which some providers tell.
        """


#: Why the next document is asked for: ``<Redirect>``, the ``action`` of a verb that is done, or a request to the API.
Occasion = Literal["redirect", "action", "update"]
#: What a status callback of a stream tells.
StreamStatus = Literal["started", "stopped", "failed"]


@runtime_checkable
class FollowsDocuments(Protocol):
    """A provider whose calls go from one answer document to the next."""

    def read_document(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | Redirect | NoStream:
        """
        Read what a document does first of what changes a call's course; arguments as in :meth:`Provider.read_answer`.

        Raises:
            RemoteProtocolError: If the provider could not read it.
        """

    def next_webhook(
        self,
        call: Call,
        callback: Callback,
        occasion: Occasion,
        *,
        answered: bool = True,
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest:
        """
        Render the request for the next document of `call`, not yet signed.

        Args:
            call: The call.
            callback: Who is asked.
            occasion: Why.
            answered: Whether the call has been answered; a first document may redirect before that.
            quirks: What the simulated carrier does where there is a choice.
            now: Unix time in seconds.
        """

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest:
        """
        Render what a stream's status callback is told, not yet signed.

        Args:
            call: The call, with the id of its stream.
            callback: Who is told.
            status: What has happened.
            name: The stream's name.
            error: Why it failed.
            now: Unix time in seconds.
        """


@dataclass(frozen=True, slots=True)
class Command:
    """
    What a request to the provider's API asks of a call that goes on.

    Attributes:
        kind: To end it, to go on with another document, to connect it to somebody else, to press keys, or to say
            how it stands.
        call_id: The call.
        document: Of an update: the document itself; empty where it is to be asked for.
        callback: Of an update: who is asked for the document.
        to: Of a transfer: whom the call is connected to.
        digits: The keys.
    """

    kind: Literal["hang-up", "update", "transfer", "digits", "look-up"]
    call_id: str
    document: bytes = b""
    callback: Callback | None = None
    to: str = ""
    digits: str = ""


@runtime_checkable
class ControlsCalls(Protocol):
    """A provider with an API by which a call that goes on can be told what to do."""

    def is_authorised(self, request: WebhookRequest) -> bool:
        """Whether a request to the API carries our credentials; true where none are known."""

    def read_command(self, request: WebhookRequest) -> Command | None:
        """
        Read a request to the API; ``None`` if it is none that a call in progress can be told.

        Raises:
            RemoteProtocolError: If it lacks what it needs.
        """

    def command_answer(
        self, command: Command, call: Call, status: Literal["ringing", "in-progress", "completed"]
    ) -> Answer:
        """Render the API's answer to a command that is carried out, after which `call` is in that status."""

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """Render an error of the API's."""


@runtime_checkable
class RepliesToErrors(Protocol):
    """A stream whose carrier tells the bot which of its messages could not be used."""

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        """Return what the carrier sends after its :meth:`Stream.receive` raised `error`; ``None`` if nothing."""
