"""
What a provider is, to the rest of wsvoice: a telephone company with nothing special about it.

A company is met from two ends, which share its facts and nothing else. :class:`Server` is what ``wsvoice run`` needs:
reading and verifying webhooks, answering them, and the bot's end of the stream. :class:`Simulator` is what ``wsvoice
dial`` needs: playing the company, from the webhook to the carrier's end of the stream. What both send over the network
is plain values in, plain values out: nothing here opens a socket, reads a clock or looks at the environment.

A company's package states what is different about it: ``company.py`` what both ends need, ``stream.py`` how its
messages are spelt, ``server.py`` and ``simulator.py`` the two halves, and where there is an API ``fake_api.py`` its
answers in a test call.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias
from urllib.parse import parse_qsl

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.call import AnsweredBy, Call, Direction, Stage
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from wsvoice.providers.fields import broken, read_object, shown, write_object

if TYPE_CHECKING:
    from wsvoice.providers.fake_api import FakeApi
    from wsvoice.providers.media_stream import Stream

Level = Literal["warn", "fail"]
#: How far a call has come.
Progress = Literal["answered", "streaming", "ended"]
#: How a call stands, as the companies' APIs say it.
CallStatus = Literal["ringing", "in-progress", "completed"]
#: Why the next document is asked for: ``<Redirect>``, the ``action`` of a verb that is done, or a request to the API.
Occasion = Literal["redirect", "action", "update"]
#: What a status callback of a stream tells.
StreamStatus = Literal["started", "stopped", "failed"]

#: Characters of an id or a number.
FIELD_LIMIT = 256

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
        url: The whole URL as the provider saw it (public scheme and host), with its query.
        headers: Header values by lower-case name.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_json(self) -> bool:
        """Whether it says that its body is JSON."""
        return self.method != "GET" and "json" in self.headers.get("content-type", "")

    def read_json(self) -> dict[str, Any]:
        """Return the JSON object that is its body; errors as :func:`~wsvoice.providers.fields.read_object`."""
        return read_object(self.body.decode("utf-8", "replace"))

    @cached_property
    def form(self) -> list[tuple[str, str]]:
        """The body's form fields, in their order, blank values included; empty for other bodies."""
        content_type = self.headers.get("content-type", "")
        if self.method == "GET" or self.is_json:
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

    @cached_property
    def content(self) -> dict[str, Any]:
        """What a GET's query or another request's JSON says; nothing if that is no object."""
        if self.method == "GET":
            return dict(self.query)
        try:
            return self.read_json()
        except RemoteProtocolError:
            return {}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """
    A request to a provider's REST API, ready to be sent.

    Attributes:
        timed_headers: Returns the headers that tell when it is sent, such as a token's, from Unix time in seconds.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    basic_auth: tuple[str, str] | None = None
    timed_headers: Callable[[float], Mapping[str, str]] | None = None

    def at(self, now: float) -> HttpRequest:
        """Return the request as it is sent at `now`, Unix time in seconds."""
        if self.timed_headers is None:
            return self
        return replace(self, headers={**self.headers, **self.timed_headers(now)}, timed_headers=None)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer to a webhook."""

    body: str
    media_type: str = "application/xml"
    status: int = 200
    #: Requests to the provider's API that carry the answer out; where there are some, the body only acknowledges.
    requests: tuple[HttpRequest, ...] = ()
    #: Further headers, such as ``Retry-After``.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BusyMessage:
    """
    What a caller hears who is turned away, before the call is ended: a `text`, or the sound at an address.

    The sound is a WAV file of 16-bit samples at 8 kHz with one channel.
    """

    text: str = ""
    sound_url: str = ""


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
        stage: How far the call is; ``None`` where the report does not say.
        answered_by: Who answered; ``None`` where the report does not say.
        greeting_ended: Whether the machine that answered has come to the end of its greeting, so that a message can
            be left.
    """

    call_id: str
    event: str
    detail: str = ""
    failed: bool = False
    ended: bool = False
    stage: Stage | None = None
    answered_by: AnsweredBy | None = None
    greeting_ended: bool = False


@dataclass(frozen=True, slots=True)
class StatusReport:
    """
    What a company is to report of a call that we placed.

    Attributes:
        stage: How far the call is.
        answered_by: What machine detection found, if it is that which is reported.
        greeting_ended: Whether the machine's greeting has come to its end.
        duration_s: How long the call has lasted, if it is over.
    """

    stage: Stage
    answered_by: AnsweredBy | None = None
    greeting_ended: bool = False
    duration_s: float = 0.0


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
    """An address, in full, that a document names: to be asked for the next document, or to be told what happens."""

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
    """What an answer document asks for after the verbs `skipped`: that another address is asked for the next one."""

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
        reason: Why no stream comes of it, for the document that a call begins with.
        kind: The same in a word, as errors have it.
    """

    how: Literal["hung-up", "transferred", "done"]
    to: str = ""
    skipped: Sequence[str] = ()
    reason: str = ""
    kind: str = "no-stream"


#: What an answer document comes to.
Document: TypeAlias = StreamRequest | Redirect | NoStream


@dataclass(frozen=True, slots=True)
class Quirk:
    """
    A way in which the simulated carrier can be made to behave: what a document leaves open, or users report.

    Attributes:
        default: What it does unless told.
        help: What it changes, in one line.
        choices: The values it takes; empty for any.
        most: Of a number, the largest.
        sets: The field of :class:`Behaviour` that it sets; empty where only the company's own stream knows it.
    """

    default: str
    help: str
    choices: tuple[str, ...] = ()
    most: float = 0.0
    sets: str = ""


#: Of a company that does not say so either way.
ECHOED_MARKS = {
    "echo-cleared-marks": Quirk(
        "no", "whether marks come back whose audio was cleared", ("no", "yes"), sets="return_cleared_marks"
    )
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """
    How a simulated call behaves.

    Attributes:
        frame_ms: How much audio a media message holds.
        reorder: How likely a media message is to change places with the next one.
        start_delay_s: How long the stream's start waits after the socket has opened.
        silent: No media is sent at all.
        return_cleared_marks: Whether marks come back when their audio is cleared.
        leg_format: The format of the telephone network's leg, which a document that names no codec gets.
        by_commands: The webhook is only acknowledged, and the call answered through the provider's API.
    """

    frame_ms: int = 20
    reorder: float = 0.0
    start_delay_s: float = 0.0
    silent: bool = False
    return_cleared_marks: bool = True
    leg_format: AudioFormat | None = None
    by_commands: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """
    What a request to the provider's API asks of a call that goes on.

    Attributes:
        kind: To end it, to go on with another document, to connect it to somebody else, to press keys, to say how it
            stands, to answer it without a stream, or to say or play something.
        document: Of an update: the document itself; empty where it is to be asked for.
        callback: Of an update: who is asked for the document.
        to: Of a transfer: whom the call is connected to.
        message: What is said, or the address of what is played.
        state: What the company repeats when it reports that an answer or a message is done.
    """

    kind: Literal["hang-up", "update", "transfer", "digits", "look-up", "answer", "message"]
    call_id: str
    document: bytes = b""
    callback: Callback | None = None
    to: str = ""
    digits: str = ""
    message: str = ""
    state: str = ""


#: What may come from a company and must not end a call: its name, and two media messages made into others.
Hazard: TypeAlias = tuple[str, Callable[[Any, Any], list[str | bytes]]]


class Company:
    """
    The facts about a company that both ends need.

    Args:
        credentials: Secrets and settings by environment variable name; only those of :attr:`credential_names` count.
    """

    #: As in ``wsvoice run -t NAME``.
    name: ClassVar[str]
    #: As the company writes itself.
    title: ClassVar[str]
    #: The credentials it knows, by environment variable name, secrets for verification first.
    credential_names: ClassVar[tuple[str, ...]] = ()
    #: Whether it signs its webhooks; where it does not, there is nothing to verify.
    signs: ClassVar[bool] = True
    #: Whether what it signs covers the body; a password does not.
    covers_body: ClassVar[bool] = True
    #: Whether a call is announced by a webhook; where it is not, the stream is dialled at once.
    has_webhook: ClassVar[bool] = True
    #: The method of its webhook unless the user chooses another.
    webhook_method: ClassVar[Literal["GET", "POST"]] = "POST"
    #: The WebSocket subprotocol of its streams; empty for none.
    subprotocol: ClassVar[str] = ""
    #: How long a piece of audio from the carrier is.
    frame_ms: ClassVar[int] = 20
    #: Whether the carrier says when a mark is reached; where it does not, that is estimated.
    has_marks: ClassVar[bool] = True
    #: At how many seconds of queued audio the company pauses the bot, and at how many it lets it go on; ``None`` if it
    #: never does.
    pauses_at_s: ClassVar[tuple[float, float] | None] = None
    #: The page that explains its error codes; ``{code}`` stands for the code, where each has a page of its own.
    codes_page: ClassVar[str] = ""

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self.credentials = {name: value for name in self.credential_names if (value := credentials.get(name))}

    def credential(self, name: str) -> str:
        """Return a credential; empty if it is not set."""
        return self.credentials.get(name, "")

    def can_verify(self) -> bool:
        """Whether the secret that webhooks are signed with is known."""
        return self.signs and bool(self.credential(self.credential_names[0]))

    def setting(self, name: str, default: str, choices: Iterable[str]) -> str:
        """Return a setting; a :exc:`ConfigError` is raised if it is none of `choices`."""
        value, choices = self.credential(name) or default, tuple(choices)
        if value not in choices:
            known = ", ".join(choices)
            raise ConfigError(
                f"{name} is {shown(value)}, which is not supported", hint=f"set it to one of {known}, or not at all"
            )
        return value


class Server(Company):
    """The server's half: what ``wsvoice run`` needs of a company. By itself it signs nothing and streams at once."""

    #: The bot's end of its streams, and the carrier's.
    stream_type: ClassVar[type[Stream]]
    mirror_type: ClassVar[type[Stream]]
    #: Where the user enters the address of the webhook, in the provider's own words.
    webhook_place: ClassVar[str] = "webhook of the number"
    #: What the secret is that its webhooks are checked with, and where the user finds it, in the provider's own words.
    secret_place: ClassVar[str] = ""
    #: Whether the carrier's audio comes in order; where it does not, it is put in order by its chunk numbers.
    ordered: ClassVar[bool] = True
    #: The challenge that a webhook without credentials is answered with, where the provider sends them only when asked:
    #: https://www.rfc-editor.org/rfc/rfc9110#name-www-authenticate
    challenge: ClassVar[str] = ""
    #: Whether the parser of pipecat's runner reads the start of its streams.
    known_to_pipecat: ClassVar[bool] = True
    #: Whether the stream of a call that we dialled may carry another id than its webhook did.
    renames_dialled_calls: ClassVar[bool] = False
    #: Statuses with which the company's API refuses to hang up because the call has ended by itself.
    ended_statuses: ClassVar[frozenset[int]] = frozenset({404, 422})
    #: Why a caller who is turned away can be told nothing, in words for the user; empty where one can.
    no_busy_message: ClassVar[str] = ""

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a webhook has this provider's fields; used where one address serves all."""
        return False

    def claims(self, message: object) -> bool:
        """
        Whether a stream's first or second message is this provider's start; used where one address serves all.

        Of JSON it is what it says, of anything else the `message` as it is.
        """
        return False

    def setup_lines(self, stream_url: str) -> list[str]:
        """Return what the user has to write into the provider's configuration, where it is files that they have."""
        return []

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces, or what it reports about one; ``None`` if it concerns no call.

        Only a call is answered with a document, and takes a place.

        Raises:
            RemoteProtocolError: If the request is not this provider's.
        """
        raise broken("no-call", f"{self.title} sends no webhooks")

    def announced(
        self, call_id: str, account_id: str, from_number: str, to_number: str, *, is_outbound: bool = False
    ) -> Call:
        """
        Return a call, whose ids and numbers are logged, repeated in the answer, and may be anybody's.

        Raises:
            RemoteProtocolError: Of kind ``bad-field``, if one of them cannot be real.
        """
        for value in (call_id, account_id, from_number, to_number):
            if len(value) > FIELD_LIMIT or not value.isprintable():
                raise broken("bad-field", f"a field of the webhook cannot be {self.title}'s: {shown(value)}")
        direction: Direction = "outbound" if is_outbound else "inbound"
        return Call(self.name, call_id, "", account_id, from_number, to_number, direction)

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the document that makes the provider stream `call` to `stream_url`.

        Args:
            status_url: Where it is reported that the stream has started, ended or could not be opened, which tells why
                a call had no audio; not reported without one, nor where the provider has no such reports.

        Raises:
            LocalProtocolError: If the provider could not use `stream_url` or one of the call's parameters.
        """
        raise LocalProtocolError("no-answer", f"{self.title} asks for no document")

    def sent_parameters(self, call: Call) -> dict[str, str]:
        """Return the custom parameters of `call` and, where the user has none of that name, :data:`CALL_PARAMETERS`."""
        return {**{name: value for name in CALL_PARAMETERS if (value := getattr(call, name))}, **call.parameters}

    def transfer_document(self, request: WebhookRequest) -> Answer:
        """
        Render the document that connects a call to whom the query of this `request`, the company's, names as ``to``.

        Only a company whose API is told a document's address needs it, for
        :meth:`~wsvoice.providers.account.Account.transfer`.
        """
        raise LocalProtocolError("no-answer", f"{self.title} asks for no document to transfer a call")

    def acknowledge(self) -> Answer:
        """Render the answer to a webhook that needs none."""
        return Answer("", media_type="text/plain")

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        """
        Render the document, or the requests for this `call`, that turn a caller away: every place is taken.

        With a `message` the call is answered, and ended after it; else the caller hears the company's own "busy".
        """
        return Answer(write_object({"error": "every place is taken"}), "application/json", status=503)

    def go_on_with_busy(self, request: WebhookRequest, message: BusyMessage | None) -> Answer | None:
        """
        Return the answer to a webhook of a call that is being turned away step by step; ``None`` if it is of no such.

        Only a company has such steps whose API plays nothing before it has reported that the call is answered.
        """
        return None

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
        return "", ""

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the URL the upgrade's signature matches, in words.

        Raises:
            SignatureError: If it matches none, or is missing.
        """
        return f"nothing, for {self.title} signs no upgrade"

    def has_credentials(self, request: WebhookRequest) -> bool:
        """Whether an upgrade carries the credentials that the user gave the provider instead of a stream token."""
        return False

    def hang_up(self, call: Call, *, now: float = 0.0) -> HttpRequest | None:
        """
        Return the request that ends `call`; ``None`` if closing the stream does, or credentials are missing.

        Some companies' credentials tell `now`, Unix time in seconds.
        """
        return None

    def stream(self) -> Stream:
        """Return the bot's end of a new stream."""
        return self.stream_type(Side.BOT, self)

    def mirror(self) -> Stream:
        """Return a carrier's end of a new stream, which reads what a bot sends by itself."""
        return self.mirror_type(Side.CARRIER, self)


class Simulator(Company):
    """The simulator's half: what ``wsvoice dial`` needs to play a company. By itself it sends no webhook."""

    #: The carrier's end of its streams, and its REST API.
    carrier_type: ClassVar[type[Stream]]
    fake_api_type: ClassVar[type[FakeApi] | None] = None
    #: How much audio of the bot's the company queues, in seconds; what comes beyond is thrown away. Where no page says,
    #: a minute is what no bot should be ahead by.
    queue_limit_s: ClassVar[float] = 60.0
    #: What becomes of marks whose audio is cleared. Where no page says: a bot that waits for them would wait for ever.
    cleared_marks: ClassVar[Literal["returned", "dropped"]] = "dropped"
    #: How the simulated carrier can be made to deviate, by name.
    quirks: ClassVar[Mapping[str, Quirk]] = {}
    #: How it was, where that is not the default; set by :func:`~wsvoice.providers.load_simulator`.
    chosen_quirks: Mapping[str, str] = MappingProxyType({})
    #: What ``--probe`` tries a bot with: what is said of it, and what becomes of two media messages.
    hazards: ClassVar[Sequence[Hazard]] = ()
    #: The media type of the company's documents, where no HTTP answer names it.
    document_type: ClassVar[str] = "application/xml"
    #: Settings that both ends of a test call must agree on, by environment variable name.
    kept_settings: ClassVar[tuple[str, ...]] = ()

    def quirk(self, name: str) -> str:
        """Return the value of a quirk; one that it does not take is a :exc:`ConfigError`."""
        quirk = self.quirks[name]
        value = self.chosen_quirks.get(name, quirk.default)
        if quirk.choices and value not in quirk.choices:
            raise ConfigError(f"the quirk {name} is one of {', '.join(quirk.choices)}, not {shown(value)}")
        return value

    def behaviour(self) -> Behaviour:
        """Return how a call behaves; errors as :meth:`quirk`."""
        chosen: dict[str, Any] = {}
        for name, quirk in self.quirks.items():
            value = self.quirk(name)
            if quirk.most:
                chosen[quirk.sets] = _read_number(name, value, quirk.most)
            elif quirk.sets:
                chosen[quirk.sets] = value == "yes"
        usual = Behaviour(frame_ms=self.frame_ms, return_cleared_marks=self.cleared_marks == "returned")
        return replace(usual, **chosen)

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent a call and its stream, with ids of the provider's shape; `seed` is at least 32 random bytes."""
        call_id, stream_id, account_id = self.new_ids(seed)
        return Call(self.name, call_id, stream_id, account_id, from_number, to_number, parameters=dict(parameters))

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        """Invent the ids of a call, its stream and its account; `seed` is at least 32 random bytes."""
        uuids = [str(uuid.UUID(bytes=each, version=4)) for each in (seed[:16], hashlib.sha256(seed).digest()[:16])]
        return uuids[0], uuids[1], str(uuid.UUID(bytes=seed[16:32], version=4))

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """
        Invent a test call's credentials, by variable name: the carrier's, which sign, and the bot's, which verify.

        The `seed` is at least 32 random bytes.
        """
        kept = {name: self.credentials[name] for name in self.kept_settings if name in self.credentials}
        carrier, bot = self.new_secrets(seed)
        return {**carrier, **kept}, {**bot, **kept}

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Invent those of :meth:`test_credentials` that are new in each call."""
        return {}, {}

    # What the company sends, not yet signed; `now` is Unix time in seconds, which some tell.

    def webhook(self, call: Call, url: str, *, method: str = "POST", now: float = 0.0) -> WebhookRequest:
        """Render the webhook for `call`, whose address is `url`."""
        raise NotImplementedError

    def next_webhook(
        self, call: Call, callback: Callback, occasion: Occasion, *, answered: bool = True, now: float = 0.0
    ) -> WebhookRequest:
        """Render the request for the next document of `call`; a first one may redirect before it is `answered`."""
        return self.webhook(call, callback.url, method=callback.method, now=now)

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest | None:
        """Render what is told to the status callback of a stream that is called `name`; ``None`` for nothing."""
        return None

    def progress_webhook(
        self, call: Call, at: Callback, progress: Progress, *, duration_s: float = 0.0, now: float = 0.0
    ) -> WebhookRequest | None:
        """Render the report on `call`, which has lasted `duration_s` if it is over; ``None`` if there is none."""
        return None

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        """
        Render the report on `call`, which we placed, to its status callback; ``None`` if the company sends none.

        One that says who answered is that of machine detection while the call goes on, which is sent to the address
        that was named for it.
        """
        return None

    def command_webhook(self, call: Call, at: Callback, command: Command, *, now: float = 0.0) -> WebhookRequest | None:
        """Render the report that a command to the API is carried out; ``None`` if the company sends none."""
        return None

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` with the provider's signature headers; as it is where no secret is known."""
        signature = self.signature_headers(request, now) if self.can_verify() else {}
        headers = {name.lower(): value for name, value in signature.items()}
        return replace(request, headers={**request.headers, **headers}) if headers else request

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        """Return the headers that sign `request`, where a secret is known."""
        return {}

    def knock(self, request: WebhookRequest) -> WebhookRequest | None:
        """Return what is sent before `request`, to be asked for credentials; ``None`` if it is signed without."""
        return None

    def upgrade_headers(self, url: str, *, now: float) -> dict[str, str]:
        """Return the headers of the provider's WebSocket upgrade to `url`, signed if the secret is known."""
        return {}

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """Return the code under which the provider's debugger shows a stream that did not open."""
        return None

    def read_answer(self, body: bytes, content_type: str, *, base_url: str = "", first: bool = True) -> Document:
        """
        Read an answer document as the provider would: what it does first of what changes a call's course.

        Args:
            body: The document.
            content_type: As an HTTP header has it.
            base_url: Where the document came from, which a relative URL starts at.
            first: Whether the call begins with it. Whom it dials then is skipped, for the caller hears the bot after.

        Raises:
            RemoteProtocolError: If the provider could not read it.
        """
        raise NotImplementedError

    def stream(self) -> Stream:
        """Return the carrier's end of a new stream."""
        return self.carrier_type(Side.CARRIER, self)

    def fake_api(self) -> FakeApi | None:
        """Return what answers in the place of the company's REST API during a test call; ``None`` if nothing does."""
        return self.fake_api_type(self) if self.fake_api_type else None


def _read_number(name: str, written: str, most: float) -> float:
    try:
        number = float(written)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise ConfigError(f"the quirk {name} takes a number from 0 to {most:g}, got {written!r}")
    return number


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
