"""
Twilio: webhooks, TwiML and Media Streams.

Webhooks: https://www.twilio.com/docs/voice/twiml#twilios-request-to-your-application
TwiML: https://www.twilio.com/docs/voice/twiml/stream
Stream messages: https://www.twilio.com/docs/voice/media-streams/websocket-messages
Signatures: https://www.twilio.com/docs/usage/security
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit
from xml.etree.ElementTree import Element

from wsvoice.audio import PCMU_8K, AudioFormat
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
    in_words,
    read_action,
    read_callback,
    read_course,
    read_document,
    read_status_callback,
    read_stream_url,
    write_rest,
)
from wsvoice.providers.events import (
    Audio,
    Clear,
    Connected,
    Digit,
    Event,
    Mark,
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
    read_signature,
    read_text,
    shown,
    write_object,
    write_payload,
    write_time,
)
from wsvoice.providers.reports import read_form_report

DIGITS = frozenset("0123456789*#ABCD")
#: Name and value together: https://www.twilio.com/docs/voice/twiml/stream#custom-parameters
PARAMETER_LIMIT = 500
#: Bytes of an answer, error 11750 beyond: https://www.twilio.com/docs/api/errors/11750
DOCUMENT_LIMIT = 64 * 1024
#: Bytes of audio in one message. Twilio names no limit; WebSocket servers elsewhere stop at 64 KiB.
PAYLOAD_LIMIT = 32 * 1024

_FIELD_LIMIT = 256
_WORDS_LIMIT = 60
_UNKNOWN_LIMIT = 64
_SETTINGS_HEADER = "x-twilio-webhooks-signature-settings"
_DIGESTS = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?([^/?#]*?)(?::(\d*))?([/?][^#]*)?(?:#.*)?", re.DOTALL)
_CALL_RESOURCE = re.compile(r".*/2010-04-01/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FORM = "application/x-www-form-urlencoded; charset=UTF-8"

Fields = Iterable[tuple[str, str]]


class _Url(NamedTuple):
    """A URL in the parts that signatures differ in; neither user info nor fragment is ever signed."""

    scheme: str
    host: str
    port: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> _Url:
        match = _URL.fullmatch(url)
        if match is None:
            return cls("", "", "", url, "")
        scheme, host, port, rest = match.groups()
        path, mark, query = (rest or "").partition("?")
        return cls(scheme, host, port or "", path, mark + query)

    @property
    def default_port(self) -> str:
        return "443" if self.scheme in ("https", "wss") else "80"

    def other_port(self) -> _Url:
        """The same URL without its port, or with the port it means."""
        return self._replace(port="" if self.port else self.default_port)

    def other_slash(self) -> _Url:
        """The same URL without its trailing slash, or with one."""
        return self._replace(path=self.path[:-1] if self.path.endswith("/") else self.path + "/")

    def __str__(self) -> str:
        if not self.scheme:
            return self.path
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{self.host}{port}{self.path}{self.query}"


class _SigningKey(NamedTuple):
    """A secret, and the hash that it is used with."""

    secret: str
    digest: str

    def sign(self, url: str, fields: Fields = ()) -> str:
        """
        Return the signature of `url` and the form's `fields`.

        A repeated field counts once for each different value, as in Twilio's own libraries.
        """
        values: dict[str, set[str]] = defaultdict(set)
        for name, value in fields:
            values[name].add(value)
        signed = "".join([url, *(name + value for name in sorted(values) for value in sorted(values[name]))])
        mac = hmac.new(
            self.secret.encode("utf-8", "surrogateescape"), signed.encode("utf-8", "surrogatepass"), self.digest
        )
        return b64encode(mac.digest()).decode("ascii")

    def signed(self, signature: str, url: str, fields: Fields = ()) -> bool:
        """Return whether `signature` is that of `url` and `fields`, in constant time."""
        return hmac.compare_digest(self.sign(url, fields).encode(), signature.encode("utf-8", "surrogatepass"))


class Twilio:
    """Twilio, with credentials by environment variable name."""

    name = "twilio"
    title = "Twilio"
    credential_names: tuple[str, ...] = (
        "TWILIO_AUTH_TOKEN",
        "TWILIO_WEBHOOK_SHARED_KEY",
        "TWILIO_WEBHOOK_SHARED_KEY_SID",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_API_KEY",
        "TWILIO_API_SECRET",
        "TWILIO_REGION",
        "TWILIO_EDGE",
    )
    signs = True
    frame_ms = 20
    ordered = True
    webhook_method: Literal["GET", "POST"] = "POST"
    webhook_place = "voice webhook of the number"
    #: https://www.twilio.com/docs/api/errors/31931
    queue_limit_s = 600.0
    #: https://www.twilio.com/docs/voice/media-streams/websocket-messages#send-a-clear-message
    renames_dialled_calls = False
    cleared_marks: Literal["returned", "dropped"] = "returned"
    quirks: Mapping[str, Quirk] = {}

    # What a company that speaks Twilio's dialect changes.
    secret_name: ClassVar[str] = "TWILIO_AUTH_TOKEN"
    account_name: ClassVar[str] = "TWILIO_ACCOUNT_SID"
    signature_header: ClassVar[str] = "X-Twilio-Signature"
    webhook_agent: ClassVar[str] = "TwilioProxy/1.1"
    stream_agent: ClassVar[str] = "Twilio.TmeWs/1.0"
    #: https://www.twilio.com/docs/voice/twiml/stream#attributes
    stream_attributes: ClassVar[frozenset[str]] = frozenset(
        {"url", "name", "track", "statusCallback", "statusCallbackMethod"}
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = {name: value for name in self.credential_names if (value := credentials.get(name))}

    # The webhook

    def can_verify(self) -> bool:
        """Whether the secret that webhooks are signed with is known."""
        return bool(self._credential(self.secret_name) or self._credential("TWILIO_WEBHOOK_SHARED_KEY"))

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a webhook has Twilio's fields, with ids of Twilio's shape."""
        fields = request.fields
        return fields.get("CallSid", "").startswith("CA") and fields.get("AccountSid", "").startswith("AC")

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is Twilio's start: camel case, with both ids, which are no UUIDs as SignalWire's are."""
        return self._is_start(message) and not has_uuid(message)

    def _is_start(self, message: Mapping[str, Any]) -> bool:
        start = message.get("start")
        if message.get("event") != "start" or not isinstance(start, Mapping):
            return False
        # Exotel has been seen to write camel case as well, but its start says who calls, which this one never does.
        return {"streamSid", "callSid"} <= start.keys() and not {"from", "to"} <= start.keys()

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces, or what a callback reports, from a POST's form or a GET's query.

        Raises:
            RemoteProtocolError: If there is no ``CallSid``, or a field is none that Twilio would send.

        https://www.twilio.com/docs/voice/twiml#request-parameters
        """
        fields = request.fields
        call_id = fields.get("CallSid", "")
        if not call_id:
            raise broken("no-call", f"the request has no CallSid, so it is not a webhook of {self.title}'s")
        if (update := read_form_report(fields)) is not None:
            return update
        account_id = fields.get("AccountSid", "")
        from_number = fields.get("From") or fields.get("Caller", "")
        to_number = fields.get("To") or fields.get("Called", "")
        # They are logged, repeated in the answer, and may be anybody's where webhooks are not verified.
        for value in (call_id, account_id, from_number, to_number):
            if len(value) > _FIELD_LIMIT or not value.isprintable():
                raise broken("bad-field", f"a field of the webhook cannot be {self.title}'s: {shown(value)}")
        return Call(
            provider=self.name,
            call_id=call_id,
            account_id=account_id,
            from_number=from_number,
            to_number=to_number,
            direction="outbound" if fields.get("Direction", "").startswith("outbound") else "inbound",
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
        Render the webhook that Twilio would send for `call`, not yet signed.

        https://www.twilio.com/docs/voice/twiml#request-parameters
        """
        return self._request(url, method, self._webhook_fields(call, _status(call)), now)

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
        Render the request for the next document: the first one's fields, and for an action the stream that has ended.

        https://www.twilio.com/docs/voice/twiml/connect#action
        https://www.twilio.com/docs/voice/twiml/redirect
        """
        fields = self._webhook_fields(call, "in-progress" if answered else _status(call))
        if occasion == "action":
            fields["StreamSid"] = call.stream_id
        return self._request(callback.url, callback.method, fields, now)

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest:
        """
        Render what a stream's ``statusCallback`` is told, not yet signed.

        https://www.twilio.com/docs/voice/twiml/stream#statuscallback
        """
        fields = {
            "AccountSid": call.account_id,
            "CallSid": call.call_id,
            "StreamSid": call.stream_id,
            # Without a name of its own a stream is called by its id.
            "StreamName": name or call.stream_id,
            "StreamEvent": f"stream-{'error' if status == 'failed' else status}",
            **({"StreamError": error} if error else {}),
            "Timestamp": write_time(now),
        }
        return self._request(callback.url, callback.method, fields, now)

    def _webhook_fields(self, call: Call, status: str) -> dict[str, str]:
        return {
            "AccountSid": call.account_id,
            "ApiVersion": "2010-04-01",
            "CallSid": call.call_id,
            "CallStatus": status,
            # Opaque, and escaped once more than the rest: a server that decodes twice breaks the signature.
            "CallToken": quote(json.dumps({"parentCallInfoToken": call.call_id}), safe=""),
            "Called": call.to_number,
            **_place("Called"),
            "Caller": call.from_number,
            **_place("Caller"),
            "Direction": "outbound-api" if call.direction == "outbound" else "inbound",
            "From": call.from_number,
            **_place("From"),
            "StirVerstat": "TN-Validation-Passed-A",
            "To": call.to_number,
            **_place("To"),
        }

    def _request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        encoded = urlencode(fields)
        headers = {
            "accept": "*/*",
            "user-agent": self.webhook_agent,
            # The same when Twilio repeats a request, so it follows from what the request is about, and when.
            "i-twilio-idempotency-token": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{url}#{now!r}#{encoded}")),
            "x-home-region": self._credential("TWILIO_REGION") or "us1",
        }
        if method == "GET":
            bare, _, fragment = url.partition("#")
            joined = bare + ("&" if "?" in bare else "?") + encoded
            return WebhookRequest("GET", f"{joined}#{fragment}" if fragment else joined, headers)
        return WebhookRequest(method, url, {**headers, "content-type": _FORM}, encoded.encode())

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Invent the secret of a test call, which both ends have; `seed` is at least 32 random bytes."""
        secret = hashlib.sha256(b"secret" + seed).hexdigest()[:32]
        return {self.secret_name: secret}, {self.secret_name: secret}

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent an inbound call and its stream, ids like Twilio's; `seed` is at least 32 random bytes."""
        return Call(
            provider=self.name,
            call_id=f"CA{seed[:16].hex()}",
            stream_id=f"MZ{hashlib.sha256(seed).hexdigest()[:32]}",
            account_id=f"AC{seed[16:32].hex()}",
            from_number=from_number,
            to_number=to_number,
            parameters=dict(parameters),
        )

    # The answer

    def answer(self, call: Call, stream_url: str) -> Answer:
        """
        Render the TwiML that connects `call` to a two-way stream.

        Both numbers and the direction go along as ``from_number``, ``to_number`` and ``direction``, for a
        stream's start message names none of them; a parameter of the user's that is called the same wins.

        Raises:
            LocalProtocolError: If Twilio could not use `stream_url` or one of the parameters.

        https://www.twilio.com/docs/voice/twiml/stream
        """
        url = urlsplit(stream_url)
        if url.scheme not in ("wss", "ws") or not url.netloc:
            raise LocalProtocolError("bad-url", f"a stream's URL starts with wss://, not {shown(stream_url)}")
        if url.query:
            raise LocalProtocolError("bad-url", f"{self.title} drops the query of a stream's URL")
        known = {"from_number": call.from_number, "to_number": call.to_number, "direction": call.direction}
        parameters = {**{name: value for name, value in known.items() if value}, **call.parameters}
        for name, value in parameters.items():
            if not name:
                raise LocalProtocolError("bad-parameter", "a custom parameter has no name")
            if len(name) + len(value) > PARAMETER_LIMIT:
                raise LocalProtocolError(
                    "long-parameter",
                    f"the parameter {shown(name)} has {len(name) + len(value)} characters with its name; "
                    f"{self.title} takes {PARAMETER_LIMIT}",
                )
        stream = element(
            "Stream",
            {"url": stream_url, **self._stream_settings()},
            *(element("Parameter", {"name": name, "value": value}) for name, value in parameters.items()),
        )
        return Answer(document(element("Response", None, element("Connect", None, stream))))

    def _stream_settings(self) -> dict[str, str]:
        """Return what ``<Stream>`` says beside its URL."""
        return {}

    def acknowledge(self) -> Answer:
        """
        Render an empty document, for callbacks: most need none, and the ``action`` of a ``<Connect>`` ends the call.

        https://www.twilio.com/docs/voice/api/call-resource#statuscallback
        https://www.twilio.com/docs/voice/twiml/connect#action
        """
        return Answer(document(element("Response")))

    def busy(self, call: Call | None = None) -> Answer:
        """
        Render the TwiML that rejects a call with a busy tone.

        https://www.twilio.com/docs/voice/twiml/reject
        """
        return Answer(document(element("Response", None, element("Reject", {"reason": "busy"}))))

    def read_answer(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest:
        """
        Read an answer as Twilio would, down to its ``<Connect><Stream>``.

        Args:
            body: The document.
            content_type: The answer's ``Content-Type``.
            base_url: Where the document came from, which a relative stream URL starts at.
            quirks: Not used; the document leaves nothing open.

        Raises:
            RemoteProtocolError: If no stream comes of it. Kinds: ``bad-content-type``, ``too-large``,
                ``bad-xml``, ``rejected``, ``hung-up``, ``redirected``, ``no-stream``, ``bad-url``.

        https://www.twilio.com/docs/voice/twiml#data-formats
        """
        response = self._read_response(body, content_type)
        skipped: list[str] = []
        verbs = list(response)
        for index, verb in enumerate(verbs):
            if verb.tag == "Connect" and (streams := verb.findall("Stream")):
                findings: list[Finding] = []
                if len(verb) > 1:
                    findings.append(_w3("fail", f"<Connect> holds {len(verb)} nouns; only one is allowed"))
                return StreamRequest(
                    url=self._stream_url(streams[0], base_url, findings),
                    parameters=self._stream_parameters(streams[0], findings),
                    format=self._stream_format(streams[0], findings),
                    headers=self._stream_headers(streams[0]),
                    skipped=skipped,
                    then=[in_words(later) for later in verbs[index + 1 :]],
                    findings=findings,
                    name=streams[0].get("name", ""),
                    status_callback=read_status_callback(streams[0], base_url, findings),
                    action=read_action(verb, base_url, findings),
                    rest=write_rest(verbs[index + 1 :]),
                )
            if verb.tag == "Reject":
                reason = "busy" if verb.get("reason") == "busy" else "rejected"
                if reason == "busy":
                    raise broken("rejected", BUSY)
                raise broken("rejected", f"the bot turned the call away with <Reject> ({reason})")
            if verb.tag == "Hangup":
                raise broken("hung-up", "the bot hung up with <Hangup> before any stream")
            if verb.tag == "Redirect":
                raise broken("redirected", "the answer is a <Redirect>; dial the URL that it names")
            skipped.append(in_words(verb))
        raise self._no_stream(verbs)

    def read_document(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | Redirect | NoStream:
        """
        Read what a document does first of what changes a call's course.

        Raises:
            RemoteProtocolError: If Twilio could not read it. Kinds: ``bad-content-type``, ``too-large``, ``bad-xml``,
                ``no-stream``, ``bad-url``.

        https://www.twilio.com/docs/voice/twiml
        """
        response = self._read_response(body, content_type)
        course = read_course(list(response), base_url, opens_stream=_opens_stream)
        return course or self.read_answer(body, content_type, base_url=base_url, quirks=quirks)

    def _read_response(self, body: bytes, content_type: str) -> Element:
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type.startswith("audio/"):
            raise broken("no-stream", f"the answer is {shown(media_type)}, which is played to the caller")
        if media_type not in ("text/xml", "application/xml", "text/html", "text/plain"):
            # https://www.twilio.com/docs/api/errors/12300
            raise broken("bad-content-type", f"the answer's type is {shown(media_type)}; send application/xml")
        try:
            root = read_document(body, limit=DOCUMENT_LIMIT)
            if root.tag != "Response":
                raise broken("bad-xml", f"the answer's root is {shown(root.tag)}; it must be Response")
        except RemoteProtocolError as error:
            if media_type == "text/plain" and error.kind == "bad-xml":
                raise broken("no-stream", f"text/plain is read aloud unless it is TwiML: {error.message}") from None
            raise
        return root

    def _no_stream(self, verbs: Sequence[Element]) -> RemoteProtocolError:
        for verb in verbs:
            if verb.tag == "Connect":
                inside = ", ".join(f"<{noun.tag}>" for noun in verb) or "nothing"
                return broken("no-stream", f"<Connect> holds {inside[:_WORDS_LIMIT]}; it needs a <Stream>")
            if verb.tag == "Start" and verb.find("Stream") is not None:
                return broken("no-stream", "<Start><Stream> only listens; to speak, use <Connect><Stream>")
        seen = ", ".join(f"<{verb.tag}>" for verb in verbs) or "nothing"
        return broken("no-stream", f"the answer holds {seen[:_WORDS_LIMIT]}, but no <Connect><Stream>")

    def _stream_url(self, stream: Element, base_url: str, findings: list[Finding]) -> str:
        written = stream.get("url", "").strip()
        url = read_stream_url(written, base_url)
        if url.scheme == "ws":
            findings.append(_w3("warn", f"the stream's URL is ws://; {self.title} refuses all but wss://"))
        if "?" in written:
            findings.append(
                _w3("warn", f"{self.title} drops the query of the stream's URL; use the path or <Parameter>")
            )
        unknown = sorted(set(stream.keys()) - self.stream_attributes)
        if unknown:
            names = ", ".join(unknown)[:_WORDS_LIMIT]
            findings.append(_w3("warn", f"<Stream> has attributes that {self.title} does not know: {names}"))
        if stream.get("track", "inbound_track") != "inbound_track":
            # https://www.twilio.com/docs/api/errors/31941
            findings.append(_w3("fail", "<Connect><Stream> allows no track but inbound_track"))
        return urlunsplit((url.scheme, url.netloc, url.path, "", ""))

    def _stream_parameters(self, stream: Element, findings: list[Finding]) -> dict[str, str]:
        parameters = {}
        for parameter in stream.findall("Parameter"):
            name, value = parameter.get("name", ""), parameter.get("value", "")
            if not name:
                findings.append(_w3("warn", "a <Parameter> has no name"))
                continue
            if len(name) + len(value) > PARAMETER_LIMIT:
                findings.append(_w3("fail", f"the parameter {shown(name)} is longer than {PARAMETER_LIMIT} characters"))
            parameters[name] = value
        return parameters

    def _stream_format(self, stream: Element, findings: list[Finding]) -> AudioFormat:
        return PCMU_8K

    def _stream_headers(self, stream: Element) -> dict[str, str]:
        return {}

    # Signatures

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Twilio signed this webhook.

        Args:
            request: With the URL that Twilio saw, not the one behind the tunnel; with or without its port.
            now: Not used; Twilio does not sign the time.

        https://www.twilio.com/docs/usage/security#validating-requests
        """
        key, signature = self._key_and_signature(request, "webhook")
        url = _Url.parse(request.url)
        if _is_json(request):
            covered = next((value for name, value in request.query if name == "bodySHA256"), "")
            if not covered:
                raise SignatureError(
                    "the webhook's body is JSON, and its signature does not cover it",
                    hint=f"{self.title} adds bodySHA256=... to the URL; let no proxy take the query away",
                )
            actual = hashlib.sha256(request.body).hexdigest()
            if not hmac.compare_digest(actual.encode(), covered.encode("utf-8", "surrogatepass")):
                raise SignatureError(
                    "the webhook's body is not the one that was signed",
                    hint="something between the provider and wsvoice rewrote the JSON",
                )
        if not any(key.signed(signature, text, request.form) for text in webhook_urls(request.url)):
            raise SignatureError(
                f"the webhook's {self.signature_header} does not match",
                hint=f"checked against {str(url)[:200]} - if {self.title} calls another address, name it "
                "with -x; otherwise the secret is not that of the account that owns the number",
            )

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return the signature, however it is written, and the token that Twilio repeats when it sends a webhook again.

        https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides
        """
        signature = read_signature(request.headers.get(self.signature_header.lower(), ""))
        return signature.hex(), request.headers.get("i-twilio-idempotency-token", "")

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the stream's URL the upgrade's signature matches, in words.

        Twilio signs the ``wss://`` URL without parameters. Reports differ about the trailing slash, the port
        and the query, so the other forms are tried as well.

        Raises:
            SignatureError: If it matches none, or is missing.

        https://www.twilio.com/docs/voice/media-streams#secure-your-media-stream
        """
        key, signature = self._key_and_signature(request, "WebSocket's upgrade")
        for words, url, fields in _upgrade_forms(request.url):
            if key.signed(signature, url, fields):
                return words
        asked = _Url.parse(request.url)._replace(scheme="wss")
        raise SignatureError(
            f"the WebSocket's {self.signature_header} does not match",
            hint=f"checked against {str(asked)[:200]} and its https, port and slash forms - "
            f"if {self.title} connects to another address, name it with -x",
        )

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """
        Return `request` with Twilio's signature; as it is where no secret is known.

        A JSON body is signed through its hash, which is added to the URL.
        """
        if not self.can_verify():
            return request
        if _is_json(request) and not any(name == "bodySHA256" for name, _ in request.query):
            url = _Url.parse(request.url)
            digest = hashlib.sha256(request.body).hexdigest()
            query = f"{url.query}{'&' if url.query else '?'}bodySHA256={digest}"
            request = replace(request, url=str(url._replace(query=query)))
        headers = self._signature_headers(str(_Url.parse(request.url)), request.form)
        return replace(
            request,
            headers={**request.headers, **{name.lower(): value for name, value in headers.items()}},
        )

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """
        Return the headers of Twilio's WebSocket upgrade to `url`, signed if the secret is known.

        The signature is that of the ``wss://`` form, also where `url` is ``ws://`` for development.
        """
        headers = {"User-Agent": self.stream_agent}
        if self.can_verify():
            headers.update(self._signature_headers(str(_Url.parse(url)._replace(scheme="wss"))))
        return headers

    def _credential(self, name: str) -> str:
        return self._credentials.get(name, "")

    def _signature_headers(self, url: str, fields: Fields = ()) -> dict[str, str]:
        secret = self._credential(self.secret_name)
        if secret:
            return {self.signature_header: _SigningKey(secret, "sha1").sign(url, fields)}
        shared = _SigningKey(self._credential("TWILIO_WEBHOOK_SHARED_KEY"), "sha256")
        sid = self._credential("TWILIO_WEBHOOK_SHARED_KEY_SID") or "webhooks_sharedkey_wsvoice"
        return {
            self.signature_header: shared.sign(url, fields),
            "X-Twilio-Webhooks-Signature-Settings": f"key={sid},algorithm=HMAC_SHA256",
        }

    def _key_and_signature(self, request: WebhookRequest, what: str) -> tuple[_SigningKey, str]:
        if not self.can_verify():
            raise SignatureError(
                f"the {what}'s signature cannot be checked without a secret", hint=f"set {self.secret_name}"
            )
        signature = request.headers.get(self.signature_header.lower(), "")
        if not signature:
            raise SignatureError(
                f"the {what} carries no {self.signature_header}",
                hint=f"it does not come from {self.title}, or a proxy removed the header",
            )
        return self._key_for(request.headers.get(_SETTINGS_HEADER, "")), signature

    def _key_for(self, settings: str) -> _SigningKey:
        # https://github.com/twilio/twilio-python/blob/9.13.0/twilio/request_validator.py
        named = {
            name.strip(): value.strip()
            for part in settings.split(",")
            for name, equals, value in [part.partition("=")]
            if equals and value.strip()
        }
        digest = _DIGESTS.get(named.get("algorithm", "HMAC_SHA1").upper())
        if digest is None:
            raise SignatureError(
                f"the signature's algorithm {shown(named['algorithm'])} is unknown",
                hint="known are HMAC_SHA1 and HMAC_SHA256",
            )
        if "algorithm" not in named:
            name = self.secret_name
        else:
            name = "TWILIO_WEBHOOK_SHARED_KEY"
            sid = self._credential("TWILIO_WEBHOOK_SHARED_KEY_SID")
            if sid and named.get("key") != sid:
                raise SignatureError(
                    f"the signature is made with the shared key {shown(named.get('key'))}",
                    hint="TWILIO_WEBHOOK_SHARED_KEY_SID names another one",
                )
        secret = self._credential(name)
        if not secret:
            raise SignatureError(
                f"the signature needs a secret that is not set: {name}",
                hint=f"set {name}, or unset the others",
            )
        return _SigningKey(secret, digest)

    # The REST API

    def has_credentials(self, request: WebhookRequest) -> bool:
        """Twilio's streams carry no credentials of the user's."""
        return False

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """
        Return the code under which Twilio's debugger shows a stream that did not open.

        https://www.twilio.com/docs/api/errors
        """
        return {"timeout": "31901", "tls": "31910", "refused": "31920"}[kind]

    def hang_up(self, call: Call) -> HttpRequest | None:
        """
        Twilio ends the call when the stream is closed and no verb follows it.

        https://www.twilio.com/docs/voice/twiml/connect
        """
        return None

    def hang_up_request(self, call_id: str, account_id: str = "") -> HttpRequest:
        """
        Return the request that ends the call `call_id`.

        Args:
            call_id: The call.
            account_id: The account that owns it, from the stream's start: a sub-account's call is not found
                under its parent.

        Raises:
            ConfigError: If the account or its secret is not known.

        https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
        """
        account = account_id or self._credential(self.account_name)
        if not account:
            raise ConfigError("the account of the call is not known", hint=f"set {self.account_name}")
        path = f"/Accounts/{quote(account, safe='')}/Calls/{quote(call_id, safe='')}.json"
        return HttpRequest(
            "POST",
            self._rest_base() + path,
            {"content-type": "application/x-www-form-urlencoded"},
            b"Status=completed",
            self._rest_auth(account),
        )

    def is_authorised(self, request: WebhookRequest) -> bool:
        """
        Whether a request to the API carries the account's token, or the secret of an API key; true if none is known.

        https://www.twilio.com/docs/usage/requests-to-twilio
        """
        accepted = [(account, secret) for account, secret in self._api_users() if secret]
        user, password = read_basic(request.headers.get("authorization", ""))
        return not accepted or any(
            hmac.compare_digest(password.encode(), secret.encode()) and account in ("", user)
            for account, secret in accepted
        )

    def _api_users(self) -> list[tuple[str, str]]:
        """Return who may use the API: names, empty for any, and secrets, empty if unknown."""
        return [
            (self._credential("TWILIO_ACCOUNT_SID"), self._credential("TWILIO_AUTH_TOKEN")),
            (self._credential("TWILIO_API_KEY"), self._credential("TWILIO_API_SECRET")),
        ]

    def read_command(self, request: WebhookRequest) -> Command | None:
        """
        Read what is asked of a call resource: to be told, ended, or given another document.

        Raises:
            RemoteProtocolError: If an update says none of these.

        https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
        """
        match = _CALL_RESOURCE.fullmatch(urlsplit(request.url).path)
        if match is None or request.method not in ("GET", "POST"):
            return None
        return read_call_command(request, unquote(match[1]), "Twiml")

    def command_answer(
        self, command: Command, call: Call, status: Literal["ringing", "in-progress", "completed"]
    ) -> Answer:
        """
        Render the call resource.

        https://www.twilio.com/docs/voice/api/call-resource#call-properties
        """
        uri = f"/2010-04-01/Accounts/{call.account_id}/Calls/{call.call_id}"
        resource = {
            "sid": call.call_id,
            "account_sid": call.account_id,
            "api_version": "2010-04-01",
            "direction": "outbound-api" if call.direction == "outbound" else "inbound",
            "from": call.from_number,
            "to": call.to_number,
            "status": status,
            "uri": f"{uri}.json",
            "subresource_uris": {"streams": f"{uri}/Streams.json"},
        }
        return Answer(write_object(resource), "application/json")

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """
        Render an error of the API's.

        https://www.twilio.com/docs/usage/twilios-response#response-formats-exceptions
        """
        code = {400: 20001, 401: 20003, 404: 20404}[status]
        more = f"https://www.twilio.com/docs/errors/{code}"
        error = {"code": code, "message": message, "more_info": more, "status": status}
        return Answer(write_object(error), "application/json", status)

    def _rest_base(self) -> str:
        # https://www.twilio.com/docs/global-infrastructure/using-the-twilio-rest-api-in-a-non-us-region
        edge, region = self._credential("TWILIO_EDGE"), self._credential("TWILIO_REGION")
        parts = ("api", edge, region or (edge and "us1"), "twilio.com")
        return f"https://{'.'.join(part for part in parts if part)}/2010-04-01"

    def _rest_auth(self, account: str) -> tuple[str, str]:
        key, secret = self._credential("TWILIO_API_KEY"), self._credential("TWILIO_API_SECRET")
        if key and secret:
            return key, secret
        token = self._credential("TWILIO_AUTH_TOKEN")
        if token:
            return self._credential("TWILIO_ACCOUNT_SID") or account, token
        raise ConfigError(
            "Twilio's REST API needs a secret",
            hint="set TWILIO_AUTH_TOKEN, or both of TWILIO_API_KEY and TWILIO_API_SECRET",
        )

    # The stream

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> TwilioStream:
        """Return a new stream's end; Twilio's carrier has no quirks."""
        return TwilioStream(side)


class TwilioStream:
    """
    One end of a Media Stream.

    https://www.twilio.com/docs/voice/media-streams/websocket-messages
    """

    title: ClassVar[str] = "Twilio"
    #: What ``mediaFormat`` calls each encoding at each rate.
    encodings: ClassVar[Mapping[AudioFormat, str]] = {PCMU_8K: "audio/x-mulaw"}

    def __init__(self, side: Side) -> None:
        self.side = side
        self.format = PCMU_8K
        self.outbound_format = PCMU_8K
        self._stream_id = ""
        self._call_id = ""
        self._account_id = ""
        self._sequence = 0
        self._chunks: dict[str, int] = defaultdict(int)
        self._sent_bytes: dict[str, int] = defaultdict(int)
        # The stream's id as JSON, and the bot's media message up to its payload: used 50 times a second.
        self._quoted_id = ""
        self._media_head = ""
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though Twilio would dislike it."""
        found, self._findings = self._findings, []
        return found

    # Sending

    def send(self, event: Event) -> str:
        """
        Render `event` as the message that this end sends.

        Raises:
            LocalProtocolError: If this end has no such message, or the stream has not started.
        """
        if not self._stream_id and not isinstance(event, Connected | StreamStarted):
            raise LocalProtocolError("not-started", f"the stream has not started; {_kind(event)} cannot be sent yet")
        if self.side is Side.CARRIER:
            if isinstance(event, Audio):
                return self._send_audio_as_carrier(event)
            return self._send_as_carrier(event)
        if isinstance(event, Audio):
            return f'{self._media_head}{write_payload(event.payload)}"}}}}'
        if isinstance(event, Mark):
            _check_mark(event)
            return write_object({"event": "mark", "streamSid": self._stream_id, "mark": {"name": event.name}})
        if isinstance(event, Clear):
            return write_object({"event": "clear", "streamSid": self._stream_id})
        raise self._no_message(event)

    def _send_audio_as_carrier(self, audio: Audio) -> str:
        track = audio.track
        if track not in ("inbound", "outbound"):
            raise LocalProtocolError("bad-track", f"a track is inbound or outbound, not {shown(track)}")
        chunk = self._chunks[track] = self._chunks[track] + 1 if audio.chunk is None else audio.chunk
        self._sent_bytes[track] += len(audio.payload)
        timestamp = audio.timestamp_ms
        if timestamp is None:
            timestamp = round(self.format.duration_ms(self._sent_bytes[track]))
        return (
            f'{{"event":"media","sequenceNumber":"{self._next(audio.sequence)}","media":{{"track":"{track}",'
            f'"chunk":"{chunk}","timestamp":"{timestamp}","payload":"{write_payload(audio.payload)}"}},'
            f'"streamSid":{self._quoted_id}}}'
        )

    def _send_as_carrier(self, event: Event) -> str:
        if isinstance(event, Connected):
            return write_object({"event": "connected", "protocol": "Call", "version": event.version})
        if isinstance(event, StreamStarted):
            return self._send_start(event)
        if isinstance(event, Digit):
            if event.digit not in DIGITS:
                raise LocalProtocolError("bad-dtmf", f"a key is one of 0-9 * # A-D, not {shown(event.digit)}")
            # The track is inbound_track here though it is inbound in media: so it is documented.
            return self._numbered("dtmf", event.sequence, {"track": "inbound_track", "digit": event.digit})
        if isinstance(event, Mark):
            _check_mark(event)
            return self._numbered("mark", event.sequence, {"name": event.name})
        if isinstance(event, StreamStopped):
            ids = {"accountSid": self._account_id, "callSid": self._call_id}
            return self._numbered("stop", event.sequence, ids)
        raise self._no_message(event)

    def _send_start(self, event: StreamStarted) -> str:
        encoding = self.encodings.get(event.format)
        if encoding is None:
            raise LocalProtocolError("bad-format", f"{self.title} streams no {event.format.encoding} at this rate")
        if not event.stream_id or not event.call_id:
            raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
        self._begin(event)
        start = {
            "accountSid": event.account_id,
            "streamSid": event.stream_id,
            "callSid": event.call_id,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": encoding, "sampleRate": event.format.sample_rate, "channels": 1},
            "customParameters": dict(event.parameters),
        }
        return self._numbered("start", event.sequence, start)

    def _numbered(self, event: str, sequence: int | None, content: dict[str, Any]) -> str:
        number = str(self._next(sequence))
        return write_object({"event": event, "sequenceNumber": number, event: content, "streamSid": self._stream_id})

    def _next(self, sequence: int | None) -> int:
        self._sequence = self._sequence + 1 if sequence is None else sequence
        return self._sequence

    def _begin(self, event: StreamStarted) -> None:
        self.format = self.outbound_format = event.format
        self._stream_id = event.stream_id
        self._call_id = event.call_id
        self._account_id = event.account_id
        self._quoted_id = json.dumps(event.stream_id)
        self._media_head = f'{{"event":"media","streamSid":{self._quoted_id},"media":{{"payload":"'

    def _no_message(self, event: Event) -> LocalProtocolError:
        end = "end" if self.side is Side.CARRIER else "bot's end"
        return LocalProtocolError("no-message", f"{self.title}'s {end} has no message for {_kind(event)}")

    # Receiving

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one. Kinds: ``binary``, ``not-json``, ``not-object``,
                ``no-event``, ``bad-start``, ``bad-media``, ``bad-base64``, ``bad-dtmf``, ``bad-mark``.
        """
        content = read_object(message)
        name = content.get("event")
        if name == "media":
            return self._read_media(content)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's event is {shown(name)}")
        return self._read_as_bot(name, content) if self.side is Side.BOT else self._read_as_carrier(name, content)

    def _read_media(self, content: dict[str, Any]) -> Audio:
        media = content.get("media")
        if not isinstance(media, dict):
            raise broken("bad-media", f"media is {shown(media)}, not an object")
        payload = read_payload(media.get("payload"))
        if self.side is Side.CARRIER:
            self._judge_media(content, payload)
            return Audio(payload)
        track = media.get("track")
        return Audio(
            payload,
            "outbound" if track == "outbound" else "inbound",
            read_counter(media.get("chunk")),
            read_counter(media.get("timestamp")),
            read_counter(content.get("sequenceNumber")),
        )

    def _read_as_bot(self, name: str, content: dict[str, Any]) -> Event:
        sequence = read_counter(content.get("sequenceNumber"))
        if name == "connected":
            version = content.get("version")
            return Connected(version if isinstance(version, str) else "1.0.0")
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
        if name == "mark":
            return Mark(self._read_mark(content), sequence)
        if name == "stop":
            return StreamStopped(sequence=sequence)
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_start(self, content: dict[str, Any], sequence: int | None) -> StreamStarted:
        start = _inner(content, "start", "bad-start")
        stream_id = start.get("streamSid") or content.get("streamSid")
        account_id = start.get("accountSid")
        texts = read_parameters(start.get("customParameters"))
        return StreamStarted(
            stream_id=read_text(stream_id, "bad-start", "start.streamSid"),
            call_id=read_text(start.get("callSid"), "bad-start", "start.callSid"),
            account_id=account_id if isinstance(account_id, str) else "",
            # The message has no field for them; answers of ours, and pipecat's convention, send them along.
            from_number=texts.get("from_number", ""),
            to_number=texts.get("to_number", ""),
            format=self._read_format(start.get("mediaFormat")),
            parameters=texts,
            sequence=sequence,
        )

    def _read_format(self, media_format: object) -> AudioFormat:
        if media_format is None:
            return PCMU_8K
        if isinstance(media_format, dict):
            name, written = media_format.get("encoding"), media_format.get("sampleRate")
            name = "audio/x-mulaw" if name is None else name
            rate = read_counter(8000 if written is None else written)
            for known, encoding in self.encodings.items():
                if (encoding, known.sample_rate) == (name, rate):
                    return known
            raise broken("bad-start", f"the audio is {shown(name)} at {rate} Hz, which {self.title} does not stream")
        raise broken("bad-start", f"start.mediaFormat is {shown(media_format)}, not an object")

    def _read_as_carrier(self, name: str, content: dict[str, Any]) -> Event:
        if name == "mark":
            self._judge_stream_id(name, content)
            return Mark(self._read_mark(content))
        if name == "clear":
            self._judge_stream_id(name, content)
            return Clear()
        # https://www.twilio.com/docs/api/errors/31951
        self._found("warn", f"{self.title} knows no message {shown(name)} of a bot's (error 31951)")
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_mark(self, content: dict[str, Any]) -> str:
        return read_text(_inner(content, "mark", "bad-mark").get("name"), "bad-mark", "mark.name")

    # Judging what a bot sends

    def _judge_media(self, content: dict[str, Any], payload: bytes) -> None:
        self._judge_stream_id("media", content)
        if not payload:
            self._found("warn", "a media message has an empty payload")
        elif payload.startswith(b"RIFF"):
            self._found("fail", "the audio starts with a WAV header, which plays as noise: send the samples alone")
        if len(payload) > PAYLOAD_LIMIT:
            self._found("warn", f"a media message holds more than {PAYLOAD_LIMIT // 1024} KiB of audio")

    def _judge_stream_id(self, name: str, content: dict[str, Any]) -> None:
        stream_id = content.get("streamSid")
        if stream_id != self._stream_id or not stream_id:
            which = "no streamSid" if not stream_id else "the streamSid of another stream"
            self._found("fail", f"a {name} message has {which}")

    def _found(self, level: Level, message: str) -> None:
        self._findings.append(Finding("M1", level, message))


def _status(call: Call) -> str:
    """What the first webhook says of a call."""
    return "in-progress" if call.direction == "outbound" else "ringing"


def _place(prefix: str) -> dict[str, str]:
    """The fields about where a number is; Twilio sends, and signs, those that it does not know as well."""
    return {f"{prefix}City": "", f"{prefix}Country": "US", f"{prefix}State": "", f"{prefix}Zip": ""}


def read_call_command(request: WebhookRequest, call_id: str, document: str) -> Command:
    """
    Read what a request asks of a call resource, of Twilio's or of those who repeat it.

    Args:
        request: A GET or a POST.
        call_id: The call.
        document: The field that holds a document.

    Raises:
        RemoteProtocolError: Of kind ``bad-command``.
    """
    if request.method == "GET":
        return Command("look-up", call_id)
    fields = dict(request.form)
    if _is_json(request):
        # As Telnyx's own library sends it.
        content = read_object(request.body.decode("utf-8", "replace"))
        fields = {name: value for name, value in content.items() if isinstance(value, str)}
    if fields.get("Status") in ("completed", "canceled"):
        return Command("hang-up", call_id)
    if written := fields.get(document):
        return Command("update", call_id, document=written.encode("utf-8", "surrogatepass"))
    try:
        callback = read_callback(fields.get("Url"), fields.get("Method"), "", "Url")
    except RemoteProtocolError as error:
        raise broken("bad-command", error.message) from None
    if callback is None:
        raise broken("bad-command", f"none of Status, Url and {document} says what becomes of the call")
    return Command("update", call_id, callback=callback)


def _opens_stream(verb: Element) -> bool:
    return verb.tag == "Connect" and verb.find("Stream") is not None


def _w3(level: Level, message: str) -> Finding:
    return Finding("W3", level, message)


def _is_json(request: WebhookRequest) -> bool:
    return request.method != "GET" and "json" in request.headers.get("content-type", "")


def is_uuid(value: object) -> bool:
    """Whether an id is a UUID, as SignalWire's are and Twilio's are not."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def has_uuid(message: Mapping[str, Any]) -> bool:
    """Whether the call of a start message is named by a UUID."""
    start = message.get("start")
    return isinstance(start, Mapping) and is_uuid(start.get("callSid"))


def webhook_urls(written: str) -> Iterator[str]:
    """Both forms of a webhook's URL: some of Twilio's products leave the port out of what they sign."""
    url = _Url.parse(written)
    yield str(url)
    yield str(url.other_port())
    if str(url) != written:
        yield written


def _upgrade_forms(url: str) -> Iterator[tuple[str, str, Fields]]:
    """Every form of a stream's URL that has been seen signed, with its name, the documented one first."""
    asked = _Url.parse(url)._replace(scheme="wss")
    slash = "without its trailing slash" if asked.path.endswith("/") else "with a trailing slash"
    port = f"without :{asked.port}" if asked.port else "with :443"
    bases = []
    for scheme in ("wss", "https"):
        exact = asked._replace(scheme=scheme)
        bases += [
            (f"the {scheme} URL", exact),
            (f"the {scheme} URL {slash}", exact.other_slash()),
            (f"the {scheme} URL {port}", exact.other_port()),
            (f"the {scheme} URL {port} and {slash}", exact.other_slash().other_port()),
        ]
    yield from ((words, str(base), ()) for words, base in bases)
    fields = parse_qsl(asked.query[1:], keep_blank_values=True)
    if fields:
        for words, base in bases:
            yield f"{words}, its query as parameters", str(base._replace(query="")), fields


def _inner(content: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    inner = content.get(name)
    if isinstance(inner, dict):
        return inner
    raise broken(kind, f"{name} is {shown(inner)}, not an object")


def _check_mark(mark: Mark) -> None:
    if not mark.name:
        raise LocalProtocolError("bad-mark", "a mark has a name")


def _kind(event: Event) -> str:
    return type(event).__name__
