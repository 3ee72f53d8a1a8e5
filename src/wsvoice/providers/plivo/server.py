"""The server's half of Plivo: webhooks verified, read and answered with XML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

from wsvoice.call import ENDED_STAGES, AnsweredBy, Call
from wsvoice.errors import LocalProtocolError, SignatureError
from wsvoice.providers.base import Answer, BusyMessage, CallUpdate, HttpRequest, Server, WebhookRequest
from wsvoice.providers.callbacks import details, report
from wsvoice.providers.fields import broken, shown, start_of, with_plus, without_plus
from wsvoice.providers.plivo.company import (
    HEADERS,
    STAGES,
    TOKEN_NAMES,
    URL_LIMIT,
    PlivoCompany,
    Version,
    signed_text,
)
from wsvoice.providers.plivo.stream import PlivoMirror, PlivoStream
from wsvoice.providers.signing import SignedUrl, hmac_base64, is_same
from wsvoice.providers.urls import check_stream_url
from wsvoice.providers.xml_writer import busy_document, document, element

#: Seconds that a stream may last, which is Plivo's own default.
STREAM_TIMEOUT_S = 86_400
# Plivo's nonces have 20 digits.
_NONCE_LIMIT = 64

# Webhooks that report, lower case: hang-up and ring URLs, machine detection, recordings, and a stream's status in its
# older and newer names. What is not among them, such as StartApp and Redirect, asks for a document.
_STREAM_STAGES = frozenset({"started", "stopped", "failed"})
_REPORTS = _STREAM_STAGES | {
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
}
# Those that follow a verb and ask for the next one say how they come, whatever else they tell.
_ASKING = frozenset({"startapp", "redirect"})
_RECORDING = frozenset({"recordurl", "recordfile", "recordingid"})
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
_ENDED = frozenset(name for name, stage in STAGES.items() if stage in ENDED_STAGES)
#: https://docs.plivo.com/docs/voice/api/call/machine-detection
_ANSWERED_BY: Mapping[str, AnsweredBy] = {"true": "machine", "false": "human"}


class PlivoServer(PlivoCompany, Server):
    """What ``wsvoice run -t plivo`` knows of Plivo."""

    stream_type = PlivoStream
    mirror_type = PlivoMirror
    webhook_place: ClassVar[str] = "answer URL of the application"
    secret_place: ClassVar[str] = "the Auth Token in the console's overview"

    def recognises(self, request: WebhookRequest) -> bool:
        """
        Whether a webhook names a call as Plivo does; a report of Plivo's own has no other field for sure.

        The hang-up of a call that was never connected may name its request alone.
        """
        return not request.fields.keys().isdisjoint(("CallUUID", "RequestUUID"))

    def claims(self, message: object) -> bool:
        start = start_of(message)
        return "streamId" in start and not start.keys().isdisjoint(PlivoStream.call_id_keys)

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        # https://www.plivo.com/docs/voice/concepts/callbacks
        fields = request.fields
        if (update := _read_report(fields)) is not None:
            return update
        call_id = fields.get("CallUUID", "")
        if not call_id:
            raise broken("no-call", "the request has no CallUUID, so it is not a webhook of Plivo's")
        caller, called = with_plus(fields.get("From", "")), with_plus(fields.get("To", ""))
        is_outbound = fields.get("Direction") == "outbound"
        return self.announced(call_id, fields.get("AuthID", ""), caller, called, is_outbound=is_outbound)

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the XML that connects `call` to a two-way stream.

        The user's parameters do not go along. ``extraHeaders`` takes letters and digits alone, the reference
        and the guide separate its pairs differently, and what arrives of it has three spellings; who runs the
        bot has the parameters anyway. Neither do the numbers: the webhook has told them.

        ``<Hangup>`` is reached when the stream has ended, and ends the call that ``keepCallAlive`` kept.

        https://docs.plivo.com/docs/voice/xml/audiostream
        """
        check_stream_url(stream_url)
        if len(stream_url) > URL_LIMIT:
            raise LocalProtocolError(
                "bad-url", f"a stream's URL has at most {URL_LIMIT} characters, not {len(stream_url)}"
            )
        attributes = {
            "bidirectional": "true",
            "keepCallAlive": "true",
            "audioTrack": "inbound",
            # Always: the documents contradict each other on what is meant without it.
            "contentType": self.content_type,
            "streamTimeout": str(STREAM_TIMEOUT_S),
        }
        if status_url:
            attributes |= {"statusCallbackUrl": status_url, "statusCallbackMethod": "POST"}
        return Answer(document(element("Stream", attributes, stream_url), element("Hangup")))

    def transfer_document(self, request: WebhookRequest) -> Answer:
        """
        Render the XML that dials whom the query names as ``to``.

        Plivo takes no foreign number as the caller's, so it is the number that the call had on our side.

        https://www.plivo.com/docs/voice/xml/dial
        https://www.plivo.com/docs/voice/xml/user
        """
        to = dict(request.query).get("to", "")
        if not to:
            raise LocalProtocolError("no-answer", "the address of a transfer names nobody to call")
        fields = request.fields
        ours = fields.get("From" if fields.get("Direction") == "outbound" else "To", "")
        whom = element("User", None, to) if to.lower().startswith("sip:") else element("Number", None, without_plus(to))
        return Answer(document(element("Dial", {"callerId": ours} if ours else None, whom)))

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        # https://www.plivo.com/docs/voice/xml/speak
        # https://www.plivo.com/docs/voice/xml/play
        # https://www.plivo.com/docs/voice/xml/hangup
        if message is not None:
            return Answer(busy_document(message, say="Speak"))
        return Answer(document(element("Hangup", {"reason": "busy"})))

    def hang_up(self, call: Call, *, now: float = 0.0) -> HttpRequest | None:
        """
        Return the request that ends `call`, as far as the account is known.

        Plivo's documents say both that ``keepCallAlive`` runs what follows the stream and that it keeps the call
        up; this ends the call either way.

        https://www.plivo.com/docs/voice/api/call/hangup-a-call
        """
        account, token = self.credential("PLIVO_AUTH_ID"), self.credential("PLIVO_AUTH_TOKEN")
        if not account or not token:
            return None
        return HttpRequest("DELETE", self.api_url("Call", call.call_id), basic_auth=(account, token))

    # Signatures: https://plivo.com/docs/voice/concepts/signature-validation

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Plivo signed this webhook.

        Version 3 covers the URL and all fields. Version 2 covers neither body nor query: it counts only where a
        request carries no version 3, and nothing that somebody could have put in.
        """
        found = self._find_signatures(request, "webhook")
        if found.version == 2 and (request.body or request.query):
            raise SignatureError(
                f"the webhook carries no {HEADERS[3].own}, and version 2 does not cover its fields",
                hint="Plivo sends version 3 with every call: somebody, or a proxy, removed the header",
            )
        if not self._match(found, found.signed_text(request)):
            raise SignatureError(
                f"the webhook's {HEADERS[found.version].own} does not match",
                hint=f"checked against {request.url.partition('?')[0][:200]} - if Plivo calls another address, name it "
                "with -x; otherwise the token is not that of the account that owns the number",
            )

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return the signature that the request's own text has; Plivo documents nothing that a retry of its own repeats.

        It is made anew, not read: a header can hold several, and the main account's beside the account's.
        """
        found, tokens = _read_signatures(request.headers), self._tokens()
        if found is None or not tokens:
            return "", ""
        return hmac_base64(tokens[0], found.signed_text(request), "sha256"), ""

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return which form of the stream's URL the upgrade's signature matches, in words.

        Plivo documents that it signs the upgrade, but not the URL's form, and its own libraries differ.

        https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
        """
        found = self._find_signatures(request, "WebSocket's upgrade")
        asked = SignedUrl.parse(request.url)
        for words, url in asked.forms(("https", "wss", "http"), ports=False):
            if self._match(found, signed_text(found.version, found.nonce, "GET", str(url))):
                return words
        for scheme in ("https", "wss"):
            # By hand, in a sample of the documentation: the method before the URL, and no dot.
            if self._match(found, f"GET{asked._replace(scheme=scheme)}{found.nonce}"):
                return f"the {scheme} URL after GET, as in the documentation's sample"
        raise SignatureError(
            f"the WebSocket's {HEADERS[found.version].own} does not match",
            hint=f"checked against {str(asked._replace(scheme='https', query=''))[:200]} and its wss, http and "
            "slash forms - if Plivo connects to another address, name it with -x",
        )

    def _tokens(self) -> list[str]:
        return [token for name in TOKEN_NAMES if (token := self.credential(name))]

    def _find_signatures(self, request: WebhookRequest, what: str) -> _Signatures:
        if not self.can_verify():
            raise SignatureError(
                f"the {what}'s signature cannot be checked without a secret", hint=f"set {TOKEN_NAMES[0]}"
            )
        found = _read_signatures(request.headers)
        if found is None or not found.nonce:
            missing = HEADERS[3].own if found is None else HEADERS[found.version].nonce
            raise SignatureError(
                f"the {what} carries no {missing}", hint="it does not come from Plivo, or a proxy removed the header"
            )
        # It stands behind the text that is signed: with anything but digits, text could be moved into it.
        if not (found.nonce.isascii() and found.nonce.isdigit() and len(found.nonce) <= _NONCE_LIMIT):
            raise SignatureError(
                f"the {what}'s {HEADERS[found.version].nonce} is {shown(found.nonce)}, not a number",
                hint="it does not come from Plivo",
            )
        return found

    def _match(self, found: _Signatures, text: str) -> bool:
        ours = [hmac_base64(token, text, "sha256") for token in self._tokens()]
        return any(is_same(own, other) for own in ours for other in found.signatures)


class _Signatures(NamedTuple):
    """The signatures that a request carries, all of one version, and their nonce."""

    version: Version
    signatures: tuple[str, ...]
    nonce: str

    def signed_text(self, request: WebhookRequest) -> str:
        """Return what such signatures of a webhook cover."""
        return signed_text(self.version, self.nonce, request.method, request.url, request.form)


def _read_signatures(headers: Mapping[str, str]) -> _Signatures | None:
    """Return the signatures of the highest version that is there, with its own nonce; the other counts for nothing."""
    for version, names in HEADERS.items():
        # A number's own account may be the main one, so both headers are held against every token.
        written = f"{headers.get(names.own.lower(), '')},{headers.get(names.main.lower(), '')}"
        if signatures := tuple(part for each in written.split(",") if (part := each.strip())):
            return _Signatures(version, signatures, headers.get(names.nonce.lower(), ""))
    return None


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
    detail = details({name: lowered.get(name.lower()) for name in _TOLD}, _TOLD)
    update = report(call_id, what, detail, failed=failed, ended=over or kind == "hangup")
    if kind not in ("ring", "hangup", "machinedetection") and not over:
        return update
    stage = STAGES.get(status)
    if update.ended and stage not in ENDED_STAGES:
        stage = "completed"
    return replace(update, stage=stage, answered_by=_ANSWERED_BY.get(lowered.get("machine", "").lower()))
