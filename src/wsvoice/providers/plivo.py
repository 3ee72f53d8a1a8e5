"""
Plivo: webhooks, Plivo XML and audio streaming.

Webhooks: https://www.plivo.com/docs/voice/concepts/callbacks
XML: https://docs.plivo.com/docs/voice/xml/audiostream
Stream messages: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference
Signatures: https://plivo.com/docs/voice/concepts/signature-validation
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import uuid
from base64 import b32encode, b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.etree.ElementTree import Element

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import (
    Answer,
    Callback,
    CallUpdate,
    Command,
    Finding,
    HttpRequest,
    Level,
    NoStream,
    Occasion,
    Progress,
    Quirk,
    Redirect,
    Side,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.documents import (
    BUSY,
    document,
    element,
    escape,
    read_callback,
    read_course,
    read_document,
    read_status_callback,
    write_rest,
)
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Digit,
    Event,
    Mark,
    SendDigits,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.messages import (
    broken,
    read_basic,
    read_counter,
    read_object,
    read_parameters,
    read_payload,
    read_text,
    shown,
    write_object,
    write_payload,
    write_time,
)
from wsvoice.providers.reports import details, report

API_BASE_URL = "https://api.plivo.com/v1"
DIGITS = frozenset("0123456789*#ABCD")
#: Characters of a stream's URL: https://www.plivo.com/docs/voice/audio-streaming/overview-doc
URL_LIMIT = 2048
#: Bytes of an answer: https://www.plivo.com/docs/voice/concepts/callbacks
DOCUMENT_LIMIT = 100 * 1024
#: Seconds that a stream may last, which is Plivo's own default.
STREAM_TIMEOUT_S = 86_400
#: Bytes of the ``extraHeaders`` attribute: https://docs.plivo.com/docs/voice/xml/audiostream
EXTRA_HEADERS_LIMIT = 512
#: Characters of base64 in one message: advised, and allowed.
#: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
PAYLOAD_ADVICE, PAYLOAD_LIMIT = 16 * 1024, 64 * 1024

#: Wire names of the formats: https://docs.plivo.com/docs/voice/xml/audiostream
ENCODINGS: Mapping[AudioFormat, str] = {
    PCMU_8K: "audio/x-mulaw",
    AudioFormat(Encoding.L16, 8000): "audio/x-l16",
    AudioFormat(Encoding.L16, 16000): "audio/x-l16",
}
#: The same as the XML's ``contentType`` and the setting ``PLIVO_STREAM_CONTENT_TYPE`` spell them.
CONTENT_TYPES: Mapping[str, AudioFormat] = {f"{name};rate={f.sample_rate}": f for f, name in ENCODINGS.items()}
DEFAULT_CONTENT_TYPE = "audio/x-mulaw;rate=8000"
# What the XML reference says; the streaming guide says mu-law.
_UNSAID_CONTENT_TYPE = "audio/x-l16;rate=8000"

#: https://docs.plivo.com/docs/voice/xml/audiostream
_STREAM_ATTRIBUTES = frozenset(
    {
        "bidirectional",
        "audioTrack",
        "streamTimeout",
        "statusCallbackUrl",
        "statusCallbackMethod",
        "contentType",
        "extraHeaders",
        "keepCallAlive",
        "noiseCancellation",
        "noiseCancellationLevel",
    }
)
# Webhooks that report, lower case: hang-up and ring URLs, machine detection, recordings, and a stream's status in its
# older and newer names. What is not among them, such as StartApp and Redirect, asks for a document.
_REPORTS = frozenset(
    {
        "hangup",
        "ring",
        "machinedetection",
        "record",
        "recordstop",
        "startstream",
        "stopstream",
        "droppedstream",
        "degradedstream",
        "playedstream",
        "clearedaudio",
        "started",
        "stopped",
        "failed",
    }
)
# Those that follow a verb and ask for the next one say how they come, whatever else they tell.
_ASKING = frozenset({"startapp", "redirect"})
_RECORDING = frozenset({"recordurl", "recordfile", "recordingid"})
# What a start calls the call: the documents, and what others have seen.
_CALL_NAMES = frozenset({"callId", "callUUID"})
_STREAM_STAGES = frozenset({"started", "stopped", "failed"})
_FAILURES = frozenset({"failed", "droppedstream", "degradedstream"})
_TOLD = (
    "HangupCause",
    "HangupCauseName",
    "HangupCauseCode",
    "HangupSource",
    "StatusReason",
    "Machine",
    "RecordingEndReason",
    "Duration",
)
#: https://www.plivo.com/docs/voice/concepts/callbacks
_ENDED = frozenset({"completed", "busy", "failed", "timeout", "no-answer", "cancel"})

_FIELD_LIMIT = 256
_WORDS_LIMIT = 60
# Plivo's nonces have 20 digits.
_NONCE_LIMIT = 64
_UNKNOWN_LIMIT = 64
_REASON_LIMIT = 200
# Milliseconds: a timestamp beyond is Unix time (2008 and later), not the age of a stream.
_UNIX_TIME_MS = 1_200_000_000_000
_FORM = "application/x-www-form-urlencoded"
_CALL_RESOURCE = re.compile(r".*/Account/[^/]+/Call/([^/]+)/?")
_DTMF_RESOURCE = re.compile(r".*/Account/[^/]+/Call/([^/]+)/DTMF/?")
_PLAIN = re.compile(r"[A-Za-z0-9+_.-]+")
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_CALLER_HEADER = re.compile("^x-ph-", re.IGNORECASE)

Fields = Iterable[tuple[str, str]]
Version = Literal[2, 3]


class _Headers(NamedTuple):
    """Where signatures of a version are: made by the account's own token, and by the main account's."""

    own: str
    main: str
    nonce: str


_HEADERS: Mapping[Version, _Headers] = {
    3: _Headers("X-Plivo-Signature-V3", "X-Plivo-Signature-Ma-V3", "X-Plivo-Signature-V3-Nonce"),
    2: _Headers("X-Plivo-Signature-V2", "X-Plivo-Signature-Ma-V2", "X-Plivo-Signature-V2-Nonce"),
}


class _Seal(NamedTuple):
    """The signatures that a request carries, all of one version, and their nonce."""

    version: Version
    signatures: tuple[str, ...]
    nonce: str

    def text(self, method: str, url: str, fields: Fields = ()) -> str:
        """Return what the signatures of such a request are made of."""
        if self.version == 2:
            return _address(url) + self.nonce
        return f"{_base(method, url, fields)}.{self.nonce}"


class Plivo:
    """
    Plivo, with credentials and settings by environment variable name.

    =============================  ===================================================================
    ``PLIVO_AUTH_TOKEN``           the account's token: verifies webhooks, and goes with the id
    ``PLIVO_MAIN_AUTH_TOKEN``      ours: the token of the main account, where the other is a sub-account's
    ``PLIVO_AUTH_ID``              the account, which hangs calls up
    ``PLIVO_API_BASE_URL``         ours: another address of the REST API, with its version
    ``PLIVO_STREAM_CONTENT_TYPE``  ours: the audio to ask for, ``audio/x-mulaw;rate=8000`` (default),
                                   ``audio/x-l16;rate=8000`` or ``audio/x-l16;rate=16000``
    =============================  ===================================================================

    Raises:
        ConfigError: If the audio is none of these.
    """

    name = "plivo"
    title = "Plivo"
    credential_names: tuple[str, ...] = (
        "PLIVO_AUTH_TOKEN",
        "PLIVO_MAIN_AUTH_TOKEN",
        "PLIVO_AUTH_ID",
        "PLIVO_API_BASE_URL",
        "PLIVO_STREAM_CONTENT_TYPE",
    )
    signs = True
    frame_ms = 20
    ordered = True
    webhook_method: Literal["GET", "POST"] = "POST"
    webhook_place = "answer URL of the application"
    #: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
    queue_limit_s = 60.0
    #: https://plivo.com/docs/voice/xml/the-stream-element/checkpoint-event
    renames_dialled_calls = False
    cleared_marks: Literal["returned", "dropped"] = "dropped"
    quirks: Mapping[str, Quirk] = {
        "start-delay": Quirk("0", "seconds between the socket's opening and the start message"),
        "silent": Quirk("no", "send no audio after the start message", ("no", "yes")),
        "ws-signature-form": Quirk(
            "https", "scheme of the URL that the upgrade is signed for", ("https", "wss", "http")
        ),
        "counters": Quirk("number", "how sequence and chunk numbers are written", ("number", "string")),
        "extra-headers": Quirk("pairs", "how extra headers are written", ("pairs", "braces", "json")),
        "timestamp-base": Quirk("0", "Unix time in ms that timestamps count from; 0 counts from the stream's start"),
    }

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = {name: value for name in self.credential_names if (value := credentials.get(name))}
        content_type = self._credentials.get("PLIVO_STREAM_CONTENT_TYPE", DEFAULT_CONTENT_TYPE)
        self._content_type = _squeezed(content_type)
        if self._content_type not in CONTENT_TYPES:
            raise ConfigError(
                f"PLIVO_STREAM_CONTENT_TYPE is {shown(content_type)}, which Plivo does not stream",
                hint=f"it is one of {', '.join(CONTENT_TYPES)}",
            )

    # The webhook

    def can_verify(self) -> bool:
        """Whether a secret that webhooks are signed with is known."""
        return bool(self._tokens())

    def recognises(self, request: WebhookRequest) -> bool:
        """
        Whether a webhook names a call as Plivo does; a report of Plivo's own has no other field for sure.

        The hang-up of a call that was never connected may name its request alone.
        """
        return not request.fields.keys().isdisjoint(("CallUUID", "RequestUUID"))

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is Plivo's start: camel case, with both ids named as Plivo does."""
        start = message.get("start")
        if message.get("event") != "start" or not isinstance(start, Mapping):
            return False
        return "streamId" in start and not start.keys().isdisjoint(_CALL_NAMES)

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces, or what it reports, from the form of a POST or the query of a GET.

        Plivo writes numbers without ``+``; the call has it, so that a number looks the same whoever sent it.

        Raises:
            RemoteProtocolError: If there is no ``CallUUID``, or a field is none that Plivo would send.

        https://www.plivo.com/docs/voice/concepts/callbacks
        """
        fields = request.fields
        if (update := _read_report(fields)) is not None:
            return update
        call_id = fields.get("CallUUID", "")
        if not call_id:
            raise broken("no-call", "the request has no CallUUID, so it is not a webhook of Plivo's")
        account_id = fields.get("AuthID", "")
        from_number, to_number = fields.get("From", ""), fields.get("To", "")
        # They are logged, repeated in the answer, and may be anybody's where webhooks are not verified.
        for value in (call_id, account_id, from_number, to_number):
            if len(value) > _FIELD_LIMIT or not value.isprintable():
                raise broken("bad-field", f"a field of the webhook cannot be Plivo's: {shown(value)}")
        return Call(
            provider=self.name,
            call_id=call_id,
            account_id=account_id,
            from_number=_with_plus(from_number),
            to_number=_with_plus(to_number),
            direction="outbound" if fields.get("Direction") == "outbound" else "inbound",
        )

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
        Render the webhook that Plivo would send for `call`, not yet signed.

        https://www.plivo.com/docs/voice/concepts/callbacks
        """
        status = "in-progress" if call.direction == "outbound" else "ringing"
        return _request(method, url, self._webhook_fields(call, "StartApp", status, now))

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
        Render the request for the next document: the first one's fields, with ``Event=Redirect``.

        https://www.plivo.com/docs/voice/xml/redirect
        """
        status = "in-progress" if answered or call.direction == "outbound" else "ringing"
        return _request(callback.method, callback.url, self._webhook_fields(call, "Redirect", status, now))

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest:
        """
        Render what a stream's ``statusCallbackUrl`` is told, not yet signed.

        https://docs.plivo.com/docs/voice/xml/audiostream
        """
        event = {"started": "StartStream", "stopped": "StopStream", "failed": "DroppedStream"}[status]
        fields = {
            **self._fields(call),
            "Event": event,
            "StreamID": call.stream_id,
            **({"StatusReason": error} if error else {}),
            "Timestamp": write_time(now),
        }
        return _request(callback.method, callback.url, fields)

    def _webhook_fields(self, call: Call, event: str, status: str, now: float) -> dict[str, str]:
        fields = {
            **self._fields(call),
            "ALegUUID": call.call_id,
            "BillRate": "0.0085",
            "CallStatus": status,
            "CallerName": _without_plus(call.from_number),
            "Event": event,
            "SessionStart": write_time(now).replace("T", " ").removesuffix("Z"),
        }
        if call.direction == "outbound":
            request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, call.call_id))
            fields.update({"ALegRequestUUID": request_id, "RequestUUID": request_id})
        return fields

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
        Render the report of a call that is over, not yet signed; ``None`` for what Plivo reports elsewhere.

        An application's hang-up URL is its answer URL unless it has another.

        https://www.plivo.com/docs/voice/concepts/callbacks
        """
        if progress != "ended":
            return None
        seconds = math.ceil(duration_s)
        fields = {
            **self._fields(call),
            "BillDuration": str(-(-seconds // 60) * 60),
            "CallStatus": "completed",
            "Duration": str(seconds),
            "Event": "Hangup",
            "HangupCause": "NORMAL_CLEARING",
            "HangupSource": "Caller",
        }
        return _request(method, url, fields)

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent an inbound call and its stream, ids like Plivo's; `seed` is at least 32 random bytes."""
        return Call(
            provider=self.name,
            call_id=str(uuid.UUID(bytes=seed[:16], version=4)),
            stream_id=str(uuid.UUID(bytes=seed[16:32], version=4)),
            account_id=_account_id(seed),
            from_number=from_number,
            to_number=to_number,
            parameters=dict(parameters),
        )

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """
        Invent the secret of a test call, which both ends have, and the account by which the bot hangs up.

        The bot keeps its setting of the audio; `seed` is at least 32 random bytes.
        """
        token = {"PLIVO_AUTH_TOKEN": hashlib.sha256(b"token" + seed).hexdigest()[:40]}
        kept = {name: value for name, value in self._credentials.items() if name == "PLIVO_STREAM_CONTENT_TYPE"}
        return token, {**token, "PLIVO_AUTH_ID": _account_id(seed), **kept}

    def _fields(self, call: Call) -> dict[str, str]:
        return {
            "AuthID": call.account_id,
            "CallUUID": call.call_id,
            "Direction": call.direction,
            "From": _without_plus(call.from_number),
            "ParentAuthID": call.account_id,
            "To": _without_plus(call.to_number),
        }

    # The answer

    def answer(self, call: Call, stream_url: str) -> Answer:
        """
        Render the XML that connects `call` to a two-way stream.

        The user's parameters do not go along. ``extraHeaders`` takes letters and digits alone, the reference
        and the guide separate its pairs differently, and what arrives of it has three spellings; who runs the
        bot has the parameters anyway. Neither do the numbers: the webhook has told them.

        ``<Hangup>`` is reached when the stream has ended, and ends the call that ``keepCallAlive`` kept.

        Raises:
            LocalProtocolError: If Plivo could not use `stream_url`.

        https://docs.plivo.com/docs/voice/xml/audiostream
        """
        url = urlsplit(stream_url)
        if url.scheme not in ("wss", "ws") or not url.netloc:
            raise LocalProtocolError("bad-url", f"a stream's URL starts with wss://, not {shown(stream_url)}")
        if len(stream_url) > URL_LIMIT:
            raise LocalProtocolError(
                "bad-url", f"a stream's URL has at most {URL_LIMIT} characters, not {len(stream_url)}"
            )
        attributes = {
            "bidirectional": "true",
            "keepCallAlive": "true",
            "audioTrack": "inbound",
            # Always: the documents contradict each other on what is meant without it.
            "contentType": self._content_type,
            "streamTimeout": str(STREAM_TIMEOUT_S),
        }
        stream = element("Stream", attributes, escape(stream_url))
        return Answer(document(element("Response", None, stream, element("Hangup"))))

    def acknowledge(self) -> Answer:
        """
        Render an empty answer, for reports; Plivo repeats what is not answered with 200.

        https://www.plivo.com/docs/voice/concepts/callbacks
        """
        return Answer("", media_type="text/plain")

    def busy(self, call: Call | None = None) -> Answer:
        """
        Render the XML that turns a call away as busy.

        https://www.plivo.com/docs/voice/xml/hangup
        """
        return Answer(document(element("Response", None, element("Hangup", {"reason": "busy"}))))

    def read_answer(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest:
        """
        Read an answer as Plivo would, down to its ``<Stream>``.

        Args:
            body: The document.
            content_type: The answer's ``Content-Type``.
            base_url: Where the document came from, which a relative callback starts at.
            quirks: Not used; none is about the document.

        Raises:
            RemoteProtocolError: If no stream comes of it. Kinds: ``too-large``, ``bad-xml``, ``rejected``,
                ``hung-up``, ``redirected``, ``no-stream``, ``bad-url``, ``bad-format``.

        https://docs.plivo.com/docs/voice/xml/audiostream
        """
        root = _read_response(body)
        findings: list[Finding] = []
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type not in ("text/xml", "application/xml"):
            findings.append(Finding("W3", "warn", f"the answer's type is {shown(media_type)}; send application/xml"))
        skipped: list[str] = []
        verbs = list(root)
        for index, verb in enumerate(verbs):
            if verb.tag == "Stream":
                return _read_stream(verb, verbs[index + 1 :], skipped, findings, base_url)
            if verb.tag == "Hangup" and not verb.get("schedule"):
                reason = verb.get("reason", "")
                if reason == "busy":
                    raise broken("rejected", BUSY)
                if reason:
                    raise broken("rejected", f"the bot turned the call away with <Hangup> ({reason[:_WORDS_LIMIT]})")
                raise broken("hung-up", "the bot hung up with <Hangup> before any stream")
            if verb.tag == "Redirect":
                raise broken("redirected", "the answer is a <Redirect>; dial the URL that it names")
            skipped.append(_in_words(verb))
        if not verbs:
            raise broken("hung-up", "the answer is an empty <Response>, which ends the call")
        seen = ", ".join(f"<{verb.tag}>" for verb in verbs)
        raise broken("no-stream", f"the answer holds {seen[:_WORDS_LIMIT]}, but no <Stream>")

    def read_document(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | Redirect | NoStream:
        """
        Read what a document does first of what changes a call's course.

        Raises:
            RemoteProtocolError: If Plivo could not read it. Kinds: ``too-large``, ``bad-xml``, ``bad-url``,
                ``bad-format``.

        https://www.plivo.com/docs/voice/xml/request
        """
        verbs = list(_read_response(body))
        course = read_course(verbs, base_url, opens_stream=lambda verb: verb.tag == "Stream", words=_in_words)
        return course or self.read_answer(body, content_type, base_url=base_url, quirks=quirks)

    # Signatures

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Plivo signed this webhook.

        Version 3 covers the URL and all fields. Version 2 covers neither body nor query: it counts only where a
        request carries no version 3, and nothing that somebody could have put in.

        Args:
            request: With the URL that Plivo saw, not the one behind the tunnel.
            now: Not used; Plivo does not sign the time.

        https://plivo.com/docs/voice/concepts/signature-validation
        """
        seal = self._seal(request, "webhook")
        if seal.version == 2 and (request.body or request.query):
            raise SignatureError(
                f"the webhook carries no {_HEADERS[3].own}, and version 2 does not cover its fields",
                hint="Plivo sends version 3 with every call: somebody, or a proxy, removed the header",
            )
        if not self._signed(seal, seal.text(request.method, request.url, request.form)):
            raise SignatureError(
                f"the webhook's {_HEADERS[seal.version].own} does not match",
                hint=f"checked against {_address(request.url)[:200]} - if Plivo calls another address, name it "
                "with -x; otherwise the token is not that of the account that owns the number",
            )

    def replay_key(self, request: WebhookRequest) -> tuple[str, str]:
        """
        Return the signature that the request's own text has; Plivo documents nothing that a retry of its own repeats.

        It is made anew, not read: a header can hold several, and the main account's beside the account's.
        """
        seal, tokens = _read_seal(request.headers), self._tokens()
        if seal is None or not tokens:
            return "", ""
        return _signature(tokens[0], seal.text(request.method, request.url, request.form)), ""

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the stream's URL the upgrade's signature matches, in words.

        Plivo documents that it signs the upgrade, but not the URL's form, and its own libraries differ.

        Raises:
            SignatureError: If it matches none, or is missing.

        https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
        """
        seal = self._seal(request, "WebSocket's upgrade")
        for words, url in _upgrade_forms(request.url):
            if self._signed(seal, seal.text("GET", url)):
                return words
        for scheme in ("https", "wss"):
            # By hand, in a sample of the documentation: the method before the URL, and no dot.
            if self._signed(seal, f"GET{_with_scheme(request.url, scheme)}{seal.nonce}"):
                return f"the {scheme} URL after GET, as in the documentation's sample"
        raise SignatureError(
            f"the WebSocket's {_HEADERS[seal.version].own} does not match",
            hint=f"checked against {_address(_with_scheme(request.url, 'https'))[:200]} and its wss, http and slash "
            "forms - if Plivo connects to another address, name it with -x",
        )

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """
        Return `request` with Plivo's signatures, versions 3 and 2; as it is where no secret is known.

        The nonces follow from the request and `now`. The headers of the main account are there if its token is.
        """
        if not self.can_verify():
            return request
        content = (request.method.encode(), request.url.encode("utf-8", "surrogatepass"), request.body)
        headers = {
            **self._signature_headers(3, _nonce(3, now, *content), request.method, request.url, request.form),
            **self._signature_headers(2, _nonce(2, now, *content), request.method, request.url),
        }
        return replace(request, headers={**request.headers, **{name.lower(): headers[name] for name in headers}})

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """
        Return the signature headers of Plivo's WebSocket upgrade to `url`; none where no secret is known.

        The quirk ``ws-signature-form`` says in which form the URL is signed, whatever its own scheme.
        """
        if not self.can_verify():
            return {}
        signed = _with_scheme(url, self._quirk(quirks, "ws-signature-form"))
        nonce = _nonce(3, now, b"GET", signed.encode("utf-8", "surrogatepass"))
        return self._signature_headers(3, nonce, "GET", signed)

    def _tokens(self) -> list[str]:
        names = ("PLIVO_AUTH_TOKEN", "PLIVO_MAIN_AUTH_TOKEN")
        return [self._credentials[name] for name in names if name in self._credentials]

    def _seal(self, request: WebhookRequest, what: str) -> _Seal:
        if not self.can_verify():
            raise SignatureError(
                f"the {what}'s signature cannot be checked without a secret", hint="set PLIVO_AUTH_TOKEN"
            )
        seal = _read_seal(request.headers)
        if seal is None or not seal.nonce:
            missing = _HEADERS[3].own if seal is None else _HEADERS[seal.version].nonce
            raise SignatureError(
                f"the {what} carries no {missing}", hint="it does not come from Plivo, or a proxy removed the header"
            )
        # It stands behind the text that is signed: with anything but digits, text could be moved into it.
        if not (seal.nonce.isascii() and seal.nonce.isdigit() and len(seal.nonce) <= _NONCE_LIMIT):
            raise SignatureError(
                f"the {what}'s {_HEADERS[seal.version].nonce} is {shown(seal.nonce)}, not a number",
                hint="it does not come from Plivo",
            )
        return seal

    def _signed(self, seal: _Seal, text: str) -> bool:
        ours = [_signature(token, text).encode() for token in self._tokens()]
        theirs = [signature.encode("utf-8", "surrogatepass") for signature in seal.signatures]
        return any(hmac.compare_digest(own, other) for own in ours for other in theirs)

    def _signature_headers(
        self, version: Version, nonce: str, method: str, url: str, fields: Fields = ()
    ) -> dict[str, str]:
        names = _HEADERS[version]
        text = _Seal(version, (), nonce).text(method, url, fields)
        headers = {}
        for credential, header in (("PLIVO_AUTH_TOKEN", names.own), ("PLIVO_MAIN_AUTH_TOKEN", names.main)):
            if token := self._credentials.get(credential):
                headers[header] = _signature(token, text)
        return {**headers, names.nonce: nonce}

    # The REST API

    def has_credentials(self, request: WebhookRequest) -> bool:
        """Plivo's streams carry no credentials of the user's."""
        return False

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """Plivo's console names no codes for a stream that did not open."""
        return None

    def hang_up(self, call: Call) -> HttpRequest | None:
        """
        Return the request that ends `call`; ``None`` if id or token of the account are not known.

        Its documents say both that ``keepCallAlive`` runs what follows the stream and that it keeps the call
        up; this ends the call either way.

        https://www.plivo.com/docs/voice/api/call/hangup-a-call
        """
        account, token = self._credentials.get("PLIVO_AUTH_ID"), self._credentials.get("PLIVO_AUTH_TOKEN")
        if not account or not token:
            return None
        base = self._credentials.get("PLIVO_API_BASE_URL", API_BASE_URL).rstrip("/")
        url = f"{base}/Account/{quote(account, safe='')}/Call/{quote(call.call_id, safe='')}/"
        return HttpRequest("DELETE", url, basic_auth=(account, token))

    def is_authorised(self, request: WebhookRequest) -> bool:
        """
        Whether a request to the API carries the account's token; true if it is not known.

        https://www.plivo.com/docs/voice/api/overview#authentication
        """
        account, token = self._credentials.get("PLIVO_AUTH_ID", ""), self._credentials.get("PLIVO_AUTH_TOKEN", "")
        user, password = read_basic(request.headers.get("authorization", ""))
        return not token or (account in ("", user) and hmac.compare_digest(password.encode(), token.encode()))

    def read_command(self, request: WebhookRequest) -> Command | None:
        """
        Read what is asked of a call: to be ended, transferred to another document, told, or to press keys.

        Raises:
            RemoteProtocolError: If it lacks what it needs.

        https://www.plivo.com/docs/voice/api/call/transfer-a-call
        https://www.plivo.com/docs/voice/api/dtmf
        """
        path = urlsplit(request.url).path
        if (match := _DTMF_RESOURCE.fullmatch(path)) and request.method == "POST":
            digits = self._api_field(request, "digits")
            if not (DIGITS | frozenset("wW")).issuperset(digits) or not digits:
                raise broken("bad-command", f"digits is {shown(digits)}, not of 0-9 A-D * # w W")
            return Command("digits", unquote(match[1]), digits=digits)
        if (match := _CALL_RESOURCE.fullmatch(path)) is None:
            return None
        call_id = unquote(match[1])
        if request.method in ("DELETE", "GET"):
            return Command("hang-up" if request.method == "DELETE" else "look-up", call_id)
        if request.method != "POST":
            return None
        if self._api_field(request, "legs") == "bleg":
            raise broken("bad-command", "a call that was not dialled on has no bleg")
        try:
            method = self._api_field(request, "aleg_method")
            callback = read_callback(self._api_field(request, "aleg_url"), method, "", "aleg_url")
        except RemoteProtocolError as error:
            raise broken("bad-command", error.message) from None
        if callback is None:
            raise broken("bad-command", "aleg_url is missing")
        return Command("update", call_id, callback=callback)

    def _api_field(self, request: WebhookRequest, name: str) -> str:
        """Return a field of a request to the API, which takes JSON and forms."""
        if "json" not in request.headers.get("content-type", ""):
            return dict(request.form).get(name, "")
        value = read_object(request.body.decode("utf-8", "replace")).get(name, "")
        return value if isinstance(value, str) else ""

    def command_answer(
        self, command: Command, call: Call, status: Literal["ringing", "in-progress", "completed"]
    ) -> Answer:
        """
        Render the answer to a command, or a live call.

        https://www.plivo.com/docs/voice/api/call/retrieve-a-live-call
        """
        api_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{command.kind}:{call.call_id}"))
        if command.kind == "hang-up":
            return Answer("", "application/json", 204)
        if command.kind == "look-up":
            live = {
                "api_id": api_id,
                "call_status": status,
                "call_uuid": call.call_id,
                "caller_name": _without_plus(call.from_number),
                "direction": call.direction,
                "from": _without_plus(call.from_number),
                "to": _without_plus(call.to_number),
            }
            return Answer(write_object(live), "application/json")
        content: dict[str, Any] = {"api_id": api_id, "message": "digits sent"}
        if command.kind == "update":
            content |= {"call_uuids": [call.call_id], "message": "call transferred"}
        return Answer(write_object(content), "application/json", 202)

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """
        Render an error of the API's.

        https://www.plivo.com/docs/voice/api/overview#http-status-codes
        """
        api_id = str(uuid.uuid5(uuid.NAMESPACE_URL, message))
        return Answer(write_object({"api_id": api_id, "error": message}), "application/json", status)

    # The stream

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> PlivoStream:
        """
        Return a new stream's end.

        Raises:
            ConfigError: If one of the carrier's `quirks` has a value that it does not take.
        """
        base = self._quirk(quirks, "timestamp-base")
        if (timestamp_base_ms := read_counter(base)) is None:
            raise ConfigError(f"the quirk timestamp-base is {shown(base)}, not a number of milliseconds")
        return PlivoStream(
            side,
            counters=self._quirk(quirks, "counters"),
            extra_headers=self._quirk(quirks, "extra-headers"),
            timestamp_base_ms=timestamp_base_ms,
        )

    def _quirk(self, quirks: Mapping[str, str] | None, name: str) -> str:
        quirk = self.quirks[name]
        value = (quirks or {}).get(name, quirk.default)
        if quirk.choices and value not in quirk.choices:
            raise ConfigError(f"the quirk {name} is one of {', '.join(quirk.choices)}, not {shown(value)}")
        return value


class PlivoStream:
    """
    One end of an audio stream.

    Args:
        side: Which end.
        counters: How the carrier writes sequence and chunk numbers: ``number``, or ``string`` as older pages do.
        extra_headers: How the carrier writes them: ``pairs``, ``braces`` or ``json``. Pairs and braces have no
            way to write all values; those that they cannot write come as JSON.
        timestamp_base_ms: What the carrier's timestamps count from.

    https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference
    """

    def __init__(
        self, side: Side, *, counters: str = "number", extra_headers: str = "pairs", timestamp_base_ms: int = 0
    ) -> None:
        self.side = side
        self.format = PCMU_8K
        self.outbound_format = PCMU_8K
        self._quote = '"' if counters == "string" else ""
        self._extra_headers_as = extra_headers
        self._timestamp_base_ms = timestamp_base_ms
        self._first_timestamp_ms: int | None = None
        self._stream_id = ""
        self._sequence = 0
        self._chunks: dict[str, int] = defaultdict(int)
        self._sent_bytes: dict[str, int] = defaultdict(int)
        # Ends of messages that are sent 50 times a second: ids and extra headers as JSON.
        self._quoted_id = ""
        self._quoted_headers = '"{}"'
        self._media_head = ""
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though Plivo would dislike it."""
        found, self._findings = self._findings, []
        return found

    # Sending

    def send(self, event: Event) -> str:
        """
        Render `event` as the message that this end sends.

        Raises:
            LocalProtocolError: If this end has no such message, or the stream has not started. Plivo's carrier
                says neither that it is connected nor that the stream has stopped.
        """
        if not self._stream_id and not isinstance(event, StreamStarted):
            raise LocalProtocolError("not-started", f"the stream has not started; {_kind(event)} cannot be sent yet")
        if self.side is Side.CARRIER:
            return self._send_as_carrier(event)
        if isinstance(event, Audio):
            return f'{self._media_head}{write_payload(event.payload)}"}}}}'
        if isinstance(event, Mark):
            _check_mark(event)
            return write_object({"event": "checkpoint", "streamId": self._stream_id, "name": event.name})
        if isinstance(event, Clear):
            return write_object({"event": "clearAudio", "streamId": self._stream_id})
        if isinstance(event, SendDigits):
            # https://docs.plivo.com/docs/voice/audio-streaming/audio-streaming
            if not _are_digits(event.digits):
                raise LocalProtocolError("bad-dtmf", f"keys are of 0-9 * # A-D, not {shown(event.digits)}")
            return write_object({"event": "sendDTMF", "dtmf": event.digits})
        raise self._no_message(event)

    def _send_as_carrier(self, event: Event) -> str:
        if isinstance(event, Audio):
            return self._send_media(event)
        if isinstance(event, StreamStarted):
            return self._send_start(event)
        if isinstance(event, Digit):
            if event.digit not in DIGITS:
                raise LocalProtocolError("bad-dtmf", f"a key is one of 0-9 * # A-D, not {shown(event.digit)}")
            timestamp = str(self._timestamp_ms("inbound"))
            dtmf = {"track": "inbound", "digit": event.digit, "timestamp": timestamp}
            return self._numbered("dtmf", event.sequence, {"streamId": self._stream_id, "dtmf": dtmf})
        if isinstance(event, Mark):
            _check_mark(event)
            return self._numbered("playedStream", event.sequence, {"streamId": self._stream_id, "name": event.name})
        if isinstance(event, Cleared):
            return self._numbered("clearedAudio", event.sequence, {"streamId": self._stream_id})
        raise self._no_message(event)

    def _send_media(self, audio: Audio) -> str:
        track = audio.track
        if track not in ("inbound", "outbound"):
            raise LocalProtocolError("bad-track", f"a track is inbound or outbound, not {shown(track)}")
        chunk = self._chunks[track] = self._chunks[track] + 1 if audio.chunk is None else audio.chunk
        self._sent_bytes[track] += len(audio.payload)
        timestamp = self._timestamp_ms(track) if audio.timestamp_ms is None else audio.timestamp_ms
        mark = self._quote
        return (
            f'{{"event":"media","sequenceNumber":{mark}{self._next(audio.sequence)}{mark},"streamId":{self._quoted_id},'
            f'"media":{{"track":"{track}","timestamp":"{timestamp}","chunk":{mark}{chunk}{mark},'
            f'"payload":"{write_payload(audio.payload)}"}},"extra_headers":{self._quoted_headers}}}'
        )

    def _send_start(self, event: StreamStarted) -> str:
        encoding = ENCODINGS.get(event.format)
        if encoding is None:
            raise LocalProtocolError("bad-format", f"Plivo streams no {event.format.encoding} at this rate")
        if not event.stream_id or not event.call_id:
            raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
        self._begin(event)
        start = {
            "callId": event.call_id,
            "streamId": event.stream_id,
            "accountId": event.account_id,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": encoding, "sampleRate": event.format.sample_rate},
        }
        headers = _write_extra_headers(event.parameters, self._extra_headers_as)
        self._quoted_headers = json.dumps(headers)
        return self._numbered("start", event.sequence, {"start": start, "extra_headers": headers})

    def _numbered(self, event: str, sequence: int | None, content: dict[str, Any]) -> str:
        number = self._next(sequence)
        return write_object({"event": event, "sequenceNumber": str(number) if self._quote else number, **content})

    def _next(self, sequence: int | None) -> int:
        self._sequence = self._sequence + 1 if sequence is None else sequence
        return self._sequence

    def _timestamp_ms(self, track: str) -> int:
        return self._timestamp_base_ms + round(self.format.duration_ms(self._sent_bytes[track]))

    def _begin(self, event: StreamStarted) -> None:
        self.format = self.outbound_format = event.format
        self._stream_id = event.stream_id
        self._quoted_id = json.dumps(event.stream_id)
        self._media_head = (
            f'{{"event":"playAudio","media":{{"contentType":"{ENCODINGS[event.format]}",'
            f'"sampleRate":{event.format.sample_rate},"payload":"'
        )

    def _no_message(self, event: Event) -> LocalProtocolError:
        end = "end" if self.side is Side.CARRIER else "bot's end"
        return LocalProtocolError("no-message", f"Plivo's {end} has no message for {_kind(event)}")

    # Receiving

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one. Kinds: ``binary``, ``not-json``, ``not-object``,
                ``no-event``, ``bad-start``, ``bad-media``, ``bad-base64``, ``bad-dtmf``, ``bad-mark``, and of a
                bot's audio ``incorrect-payload``.
        """
        content = read_object(message)
        name = content.get("event")
        if self.side is Side.BOT and name == "media":
            return self._read_media(content)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's event is {shown(name)}")
        return self._read_as_bot(name, content) if self.side is Side.BOT else self._read_as_carrier(name, content)

    def _read_media(self, content: dict[str, Any]) -> Audio:
        media = _inner(content, "media", "bad-media")
        return Audio(
            read_payload(media.get("payload")),
            "outbound" if media.get("track") == "outbound" else "inbound",
            read_counter(media.get("chunk")),
            self._age_ms(read_counter(media.get("timestamp"))),
            read_counter(content.get("sequenceNumber")),
        )

    def _age_ms(self, timestamp: int | None) -> int | None:
        """Turn a timestamp into the stream's age: one page calls it Unix time, a library of Plivo's the age."""
        if timestamp is None or timestamp < _UNIX_TIME_MS:
            return timestamp
        if self._first_timestamp_ms is None:
            self._first_timestamp_ms = timestamp
        return max(0, timestamp - self._first_timestamp_ms)

    def _read_as_bot(self, name: str, content: dict[str, Any]) -> Event:
        sequence = read_counter(content.get("sequenceNumber"))
        if name == "start":
            started = self._read_start(content, sequence)
            self._begin(started)
            return started
        if name == "dtmf":
            digit = _inner(content, "dtmf", "bad-dtmf").get("digit")
            if isinstance(digit, int) and not isinstance(digit, bool) and 0 <= digit <= 9:
                digit = str(digit)
            if not isinstance(digit, str) or digit not in DIGITS:
                raise broken("bad-dtmf", f"dtmf.digit is {shown(digit)}, not one of 0-9 * # A-D")
            return Digit(digit, sequence)
        if name == "playedStream":
            return Mark(read_text(content.get("name"), "bad-mark", "name"), sequence)
        if name == "clearedAudio":
            return Cleared(sequence)
        if name == "incorrectPayload":
            # https://github.com/plivo/plivo-streaming-examples
            return StreamError(name)
        if name == "stop":
            # Only older libraries know it: https://github.com/plivo/plivo-stream-sdk-python
            stop = content.get("stop")
            reason = (stop if isinstance(stop, dict) else content).get("reason")
            return StreamStopped(reason[:_REASON_LIMIT] if isinstance(reason, str) else "", sequence)
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_start(self, content: dict[str, Any], sequence: int | None) -> StreamStarted:
        start = _inner(content, "start", "bad-start")
        account_id = start.get("accountId")
        parameters = _read_extra_headers(content.get("extra_headers"))
        return StreamStarted(
            stream_id=read_text(start.get("streamId") or content.get("streamId"), "bad-start", "start.streamId"),
            call_id=read_text(start.get("callId") or start.get("callUUID"), "bad-start", "start.callId"),
            account_id=account_id if isinstance(account_id, str) else "",
            # The message has no field for them, the webhook has; extra headers of the user's own may name them.
            from_number=parameters.get("from_number", ""),
            to_number=parameters.get("to_number", ""),
            format=self._read_format(start.get("mediaFormat")),
            parameters=parameters,
            sequence=sequence,
        )

    def _read_format(self, media_format: object) -> AudioFormat:
        if media_format is None:
            return PCMU_8K
        if not isinstance(media_format, dict):
            raise broken("bad-start", f"start.mediaFormat is {shown(media_format)}, not an object")
        encoding, written = media_format.get("encoding"), media_format.get("sampleRate")
        encoding = "audio/x-mulaw" if encoding is None else encoding
        rate = read_counter(8000 if written is None else written)
        if isinstance(encoding, str):
            # As the XML spells it, rate included.
            bare = _squeezed(encoding).partition(";")[0]
            for known, name in ENCODINGS.items():
                if (name, known.sample_rate) == (bare, rate):
                    return known
        raise broken("bad-start", f"the audio is {shown(encoding)} at {rate} Hz, which Plivo does not stream")

    def _read_as_carrier(self, name: str, content: dict[str, Any]) -> Event:
        if name == "playAudio":
            return self._read_play_audio(content)
        if name == "checkpoint":
            self._judge_stream_id(name, content)
            return Mark(read_text(content.get("name"), "bad-mark", "name"))
        if name == "clearAudio":
            self._judge_stream_id(name, content)
            return Clear()
        if name == "media":
            raise broken("bad-media", "a bot's audio is a playAudio message; Plivo plays no media messages")
        if name == "sendDTMF":
            digits = content.get("dtmf")
            if not isinstance(digits, str) or not _are_digits(digits):
                raise broken("bad-dtmf", f"dtmf is {shown(digits)}, not a text of keys 0-9 * # A-D")
            return SendDigits(digits)
        self._found("warn", f"Plivo knows no message {shown(name)} of a bot's")
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_play_audio(self, content: dict[str, Any]) -> Audio:
        media = _inner(content, "media", "bad-media")
        self._check_format(media)
        payload = read_payload(media.get("payload"))
        if len(payload) % self.format.sample_width:
            raise broken("incorrect-payload", f"{len(payload)} bytes of 16-bit audio end in the middle of a sample")
        self._judge_play_audio(content, media, payload)
        return Audio(payload)

    def _check_format(self, media: dict[str, Any]) -> None:
        expected = ENCODINGS[self.format]
        encoding, rate = media.get("contentType"), media.get("sampleRate")
        if encoding != expected:
            which = "missing" if encoding is None else shown(encoding)
            raise broken("incorrect-payload", f"media.contentType is {which}; the stream's is {expected}, without rate")
        if read_counter(rate) != self.format.sample_rate:
            which = "missing" if rate is None else shown(str(rate) if _is_scalar(rate) else rate)
            raise broken("incorrect-payload", f"media.sampleRate is {which}; the stream's is {self.format.sample_rate}")
        if isinstance(rate, str):
            self._found("warn", "media.sampleRate is a text; Plivo documents a number")

    # Judging what a bot sends

    def _judge_play_audio(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        stream_id = content.get("streamId")
        if stream_id is not None and stream_id != self._stream_id:
            self._found("warn", "a playAudio message has the streamId of another stream")
        if not payload:
            self._found("warn", "a playAudio message has an empty payload")
        elif payload.startswith(b"RIFF"):
            self._found("fail", "the audio starts with a WAV header, which plays as noise: send the samples alone")
        size = len(media["payload"])
        if size > PAYLOAD_LIMIT:
            self._found("fail", f"a playAudio message holds more than {PAYLOAD_LIMIT // 1024} KiB of base64")
        elif size > PAYLOAD_ADVICE:
            self._found("warn", f"a playAudio message holds more than {PAYLOAD_ADVICE // 1024} KiB of base64")

    def _judge_stream_id(self, name: str, content: dict[str, Any]) -> None:
        stream_id = content.get("streamId")
        if stream_id != self._stream_id or not stream_id:
            which = "no streamId" if not stream_id else "the streamId of another stream"
            self._found("fail", f"a {name} message has {which}")

    def _found(self, level: Level, message: str) -> None:
        self._findings.append(Finding("M1", level, message))


# Webhooks


def _read_report(fields: Mapping[str, str]) -> CallUpdate | None:
    """
    Read what a webhook only reports: a call's ringing or end, machine detection, a recording, a stream's status.

    https://www.plivo.com/docs/voice/concepts/callbacks
    https://docs.plivo.com/docs/voice/xml/audiostream
    """
    # The pages about streams do not agree with the others on capitals.
    lowered = {name.lower(): value for name, value in fields.items()}
    event, status = lowered.get("event", ""), lowered.get("callstatus", "")
    kind, over = event.lower(), status in _ENDED
    recorded = kind not in _ASKING and not lowered.keys().isdisjoint(_RECORDING)
    if not (kind in _REPORTS or over or recorded or "streamid" in lowered):
        return None
    call_id = lowered.get("calluuid") or lowered.get("requestuuid", "")
    what = f"stream {event}" if kind in _STREAM_STAGES else event or status or ("Record" if recorded else "stream")
    failed = kind in _FAILURES or status == "failed"
    detail = details({name: lowered.get(name.lower(), "") for name in _TOLD}, _TOLD)
    return report(call_id, what, detail, failed=failed, ended=over or kind == "hangup")


def _request(method: str, url: str, fields: Mapping[str, str]) -> WebhookRequest:
    encoded = urlencode(fields)
    if method == "GET":
        bare, _, fragment = url.partition("#")
        joined = bare + ("&" if "?" in bare else "?") + encoded
        return WebhookRequest("GET", f"{joined}#{fragment}" if fragment else joined, {"accept": "*/*"})
    return WebhookRequest(method, url, {"accept": "*/*", "content-type": _FORM}, encoded.encode())


def _account_id(seed: bytes) -> str:
    """Return an id of a main account's shape."""
    return f"MA{b32encode(hashlib.sha256(b'account' + seed).digest()).decode('ascii')[:18]}"


def _with_plus(number: str) -> str:
    return f"+{number}" if number.isascii() and number.isdigit() else number


def _without_plus(number: str) -> str:
    bare = number.removeprefix("+")
    return bare if bare.isascii() and bare.isdigit() else number


# Signatures


def _address(url: str) -> str:
    """Return `url` without query and fragment."""
    return url.partition("#")[0].partition("?")[0]


def _base(method: str, url: str, fields: Fields) -> str:
    """
    Return what a signature of version 3 covers, but for the nonce.

    A question mark is there before the fields of a form even where the URL has no query.

    https://github.com/plivo/plivo-python/blob/master/plivo/utils/signature_v3.py
    """
    written = url.partition("#")[0].partition("?")[2]
    query = "&".join(f"{name}={value}" for name, value in sorted(parse_qsl(written, keep_blank_values=True)))
    pairs = sorted(fields)
    form = "".join(name + value for name, value in pairs)
    if method != "GET" and pairs:
        return f"{_address(url)}?{query}{'.' if query else ''}{form}"
    return f"{_address(url)}?{query}" if query else _address(url)


def _signature(token: str, text: str) -> str:
    key = token.encode("utf-8", "surrogateescape")
    return b64encode(hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")).decode("ascii")


def _nonce(version: int, now: float, *content: bytes) -> str:
    """Return 20 digits, as Plivo's nonces have, that follow from the arguments."""
    digest = hashlib.sha256(f"{version} {now!r}".encode())
    for part in content:
        digest.update(b"\x00" + part)
    return f"{int.from_bytes(digest.digest()) % 10**20:020}"


def _read_seal(headers: Mapping[str, str]) -> _Seal | None:
    """Return the signatures of the highest version that is there, with its own nonce; the other counts for nothing."""
    for version, names in _HEADERS.items():
        # A number's own account may be the main one, so both headers are held against every token.
        written = f"{headers.get(names.own.lower(), '')},{headers.get(names.main.lower(), '')}"
        if signatures := tuple(part for each in written.split(",") if (part := each.strip())):
            return _Seal(version, signatures, headers.get(names.nonce.lower(), ""))
    return None


def _with_scheme(url: str, scheme: str) -> str:
    return f"{scheme}://{url.partition('://')[2]}"


def _upgrade_forms(url: str) -> Iterator[tuple[str, str]]:
    """Every form of a stream's URL that may have been signed, with its name, the likeliest first."""
    address = _address(url)
    rest = url[len(address) :]
    slash = "without its trailing slash" if address.endswith("/") else "with a trailing slash"
    other = address[:-1] if address.endswith("/") else address + "/"
    for scheme in ("https", "wss", "http"):
        yield f"the {scheme} URL", _with_scheme(address + rest, scheme)
        yield f"the {scheme} URL {slash}", _with_scheme(other + rest, scheme)


# Answers


def _read_response(body: bytes) -> Element:
    root = read_document(body, limit=DOCUMENT_LIMIT)
    if root.tag != "Response":
        raise broken("bad-xml", f"the answer's root is {shown(root.tag)}; it must be Response")
    return root


def _read_stream(
    stream: Element, later: Sequence[Element], skipped: Sequence[str], findings: list[Finding], base_url: str
) -> StreamRequest:
    url = _stream_url(stream, findings)
    _judge_stream(stream, later, findings)
    then: list[str] = []
    for verb in later:
        # Where the call ends anyway, nothing of it is news.
        if verb.tag == "Hangup" and not verb.get("schedule"):
            break
        then.append(_in_words(verb))
    return StreamRequest(
        url=url,
        parameters=_stream_parameters(stream, findings),
        format=_stream_format(stream, findings),
        skipped=skipped,
        then=then,
        findings=findings,
        status_callback=read_status_callback(stream, base_url, findings, "statusCallbackUrl"),
        rest=write_rest(later) if then else b"",
    )


def _stream_url(stream: Element, findings: list[Finding]) -> str:
    written = (stream.text or "").strip()
    if not written:
        where = " in its url attribute, which is Twilio's way" if stream.get("url") else ""
        raise broken("bad-url", f"<Stream> holds no URL{where}; write it between the tags")
    if len(written) > URL_LIMIT:
        raise broken("bad-url", f"the stream's URL has {len(written)} characters; {URL_LIMIT} are allowed")
    try:
        url = urlsplit(written)
        usable = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\x00-\x20\x7f]", written):
        raise broken("bad-url", f"the stream's URL {shown(written)} is not a URL")
    if url.scheme == "ws":
        findings.append(Finding("W3", "warn", "the stream's URL is ws://; Plivo documents wss:// alone"))
    elif url.scheme != "wss":
        raise broken("bad-url", f"the stream's URL starts with {shown(url.scheme)}; it must be wss")
    return written


def _judge_stream(stream: Element, later: Sequence[Element], findings: list[Finding]) -> None:
    def found(id_: str, level: Level, message: str) -> None:
        findings.append(Finding(id_, level, message))

    if not _is_true(stream, "bidirectional"):
        found("W5", "fail", '<Stream> only listens without bidirectional="true": the caller never hears the bot')
    elif stream.get("audioTrack", "inbound") != "inbound":
        found("W5", "fail", "a two-way <Stream> takes no audioTrack but inbound")
    if not _is_true(stream, "keepCallAlive"):
        if later:
            found("W5", "warn", '<Stream> has no keepCallAlive="true": what follows it runs while it streams')
        else:
            found("W5", "fail", '<Stream> has no keepCallAlive="true": the call ends, for nothing follows it')
    if any(verb.tag == "Stream" for verb in later):
        found("W3", "warn", "a call takes one <Stream>; the answer holds another")
    timeout = stream.get("streamTimeout")
    if timeout is not None and not read_counter(timeout):
        found("W3", "warn", f"streamTimeout is {shown(timeout)}, not a number of seconds")
    unknown = sorted(set(stream.keys()) - _STREAM_ATTRIBUTES)
    if unknown:
        found("W3", "warn", f"<Stream> has attributes that Plivo does not know: {', '.join(unknown)[:_WORDS_LIMIT]}")


def _stream_format(stream: Element, findings: list[Finding]) -> AudioFormat:
    written = stream.get("contentType")
    if written is None:
        text = "<Stream> has no contentType: Plivo's reference then means 16-bit audio, its guide mu-law"
        findings.append(Finding("W5", "warn", text))
        return CONTENT_TYPES[_UNSAID_CONTENT_TYPE]
    known = CONTENT_TYPES.get(_squeezed(written))
    if known is None:
        raise broken("bad-format", f"contentType is {shown(written)}; it is one of {', '.join(CONTENT_TYPES)}")
    return known


def _stream_parameters(stream: Element, findings: list[Finding]) -> dict[str, str]:
    written = stream.get("extraHeaders", "")
    if not written:
        return {}
    parameters = _read_pairs(written)
    if len(written.encode("utf-8", "surrogatepass")) > EXTRA_HEADERS_LIMIT:
        findings.append(Finding("W3", "fail", f"extraHeaders is longer than {EXTRA_HEADERS_LIMIT} bytes"))
    if not all(_ALPHANUMERIC.fullmatch(text) for pair in parameters.items() for text in pair):
        findings.append(Finding("W3", "warn", "extraHeaders takes letters and digits alone"))
    if len(parameters) > 1:
        text = "Plivo's reference separates extraHeaders by commas, its guide by semicolons: send one pair"
        findings.append(Finding("W3", "warn", text))
    return parameters


def _is_true(stream: Element, attribute: str) -> bool:
    return stream.get(attribute, "").strip().lower() == "true"


def _squeezed(content_type: str) -> str:
    return "".join(content_type.split()).lower()


def _in_words(verb: Element) -> str:
    """Say what an element does, in a few words."""
    text = " ".join("".join(verb.itertext()).split())
    if verb.tag == "Wait":
        text = f"{verb.get('length', '1')[:_WORDS_LIMIT]} s"
    elif verb.tag == "Hangup":
        text = f"in {verb.get('schedule', '0')[:_WORDS_LIMIT]} s"
    words = f"{verb.tag}: {text}" if text else verb.tag
    return words if len(words) <= _WORDS_LIMIT else words[: _WORDS_LIMIT - 3] + "..."


# Extra headers of messages


def _write_extra_headers(parameters: Mapping[str, str], how: str) -> str:
    plain = all(_PLAIN.fullmatch(text) for pair in parameters.items() for text in pair)
    if parameters and plain and how == "pairs":
        return ";".join(f"{name}={value}" for name, value in parameters.items())
    if parameters and plain and how == "braces":
        return "{" + ", ".join(f"X-PH-{name}: {value}" for name, value in parameters.items()) + "}"
    return json.dumps(dict(parameters))


def _read_extra_headers(value: object) -> dict[str, str]:
    """
    Return the extra headers of a start message.

    They have been seen as ``k=v;k=v``, as ``{X-PH-k: v}`` and as JSON; what is none of these counts for nothing.
    """
    if isinstance(value, dict):
        return _texts(value)
    if not isinstance(value, str):
        return {}
    try:
        return _texts(read_object(value))
    except RemoteProtocolError:
        return _read_pairs(value)


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    return {_CALLER_HEADER.sub("", name): value for name, value in read_parameters(headers).items()}


def _read_pairs(written: str) -> dict[str, str]:
    text = written.strip()
    separator = "="
    if text.startswith("{") and text.endswith("}"):
        text, separator = text[1:-1], ":"
    pairs = (part.partition(separator) for part in re.split("[;,]", text))
    return {
        _CALLER_HEADER.sub("", name.strip()): value.strip() for name, found, value in pairs if found and name.strip()
    }


def _is_scalar(value: object) -> bool:
    return not isinstance(value, dict | list)


def _inner(content: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    inner = content.get(name)
    if isinstance(inner, dict):
        return inner
    raise broken(kind, f"{name} is {shown(inner)}, not an object")


def _are_digits(text: str) -> bool:
    return bool(text) and DIGITS.issuperset(text)


def _check_mark(mark: Mark) -> None:
    if not mark.name:
        raise LocalProtocolError("bad-mark", "a mark has a name")


def _kind(event: Event) -> str:
    return type(event).__name__
