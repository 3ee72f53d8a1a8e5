"""The simulator's half of Vonage: webhooks made and signed, NCCOs carried out."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import urlunsplit

from wsvoice.call import Call
from wsvoice.providers.base import (
    ECHOED_MARKS,
    Callback,
    Document,
    Finding,
    NoStream,
    Simulator,
    StatusReport,
    StreamRequest,
    WebhookRequest,
)
from wsvoice.providers.fields import (
    broken,
    read_array,
    read_inner,
    read_parameters,
    shown,
    squeezed,
    without_plus,
    write_time,
)
from wsvoice.providers.hazards import BINARY_HAZARDS
from wsvoice.providers.judged_stream import JudgedBinaryStream
from wsvoice.providers.tokens import bearer_header, new_key
from wsvoice.providers.urls import json_request, read_stream_url
from wsvoice.providers.vonage.company import FORMATS, HEADERS_LIMIT, VonageCompany, outbound_url
from wsvoice.providers.vonage.fake_account import STATUSES, completed_fields, conversation_id
from wsvoice.providers.vonage.fake_api import VonageApi
from wsvoice.providers.vonage.stream import VonageStream
from wsvoice.providers.xml_answer import turned_away

#: Characters of what is told of an action.
WORDS_LIMIT = 60


class VonageCarrier(JudgedBinaryStream, VonageStream):
    """The simulated carrier's end."""


class VonageSimulator(VonageCompany, Simulator):
    """What ``wsvoice dial -t vonage`` knows of Vonage."""

    carrier_type = VonageCarrier
    fake_api_type = VonageApi
    hazards = BINARY_HAZARDS
    #: 3072 messages: https://developer.vonage.com/en/voice/voice-api/concepts/websockets
    queue_limit_s: ClassVar[float] = 3072 * 0.02
    kept_settings: ClassVar[tuple[str, ...]] = ("VONAGE_SAMPLE_RATE",)
    quirks = ECHOED_MARKS
    document_type: ClassVar[str] = "application/json"

    def webhook(self, call: Call, url: str, *, method: str = "POST", now: float = 0.0) -> WebhookRequest:
        # https://developer.vonage.com/en/voice/voice-api/webhook-reference#answer-webhook
        if call.direction == "outbound":
            # Whoever places a call gives it an answer URL that says so, for no field does.
            url = outbound_url(url)
        content = {
            "to": without_plus(call.to_number),
            "from": without_plus(call.from_number),
            "uuid": call.call_id,
            "conversation_uuid": conversation_id(call),
            "region_url": "https://api-us-3.vonage.com",
        }
        return json_request(url, method, content)

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        """
        Render an event webhook; what machine detection finds is one as well, to the same address.

        https://developer.vonage.com/en/voice/voice-api/webhook-reference#event-webhook
        https://developer.vonage.com/en/voice/voice-api/concepts/advanced-machine-detection
        """
        content: dict[str, Any] = {
            "from": without_plus(call.from_number),
            "to": without_plus(call.to_number),
            "conversation_uuid": conversation_id(call),
            "timestamp": f"{write_time(now)[:-4]}Z",
        }
        if report.answered_by == "unknown":
            return None
        if report.answered_by:
            status = "human" if report.answered_by == "human" else "machine"
            beep = {"sub_state": "beep_start"} if report.greeting_ended else {}
            return json_request(at.url, at.method, {"call_uuid": call.call_id, **content, "status": status, **beep})
        content |= {"uuid": call.call_id, "status": STATUSES[report.stage], "direction": call.direction}
        if report.stage == "completed":
            content |= completed_fields(report.duration_s, write_time(now - report.duration_s), write_time(now))
        return json_request(at.url, at.method, content)

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        # https://developer.vonage.com/en/getting-started/concepts/webhooks#decoding-signed-webhooks
        digest = hashlib.sha256(request.body).hexdigest()
        claims = {"iat": int(now), "iss": "Vonage", **({"payload_hash": digest} if request.body else {})}
        secret, about = self.credential("VONAGE_SIGNATURE_SECRET"), f"{request.url}#{digest}#{now!r}"
        return bearer_header(claims, secret, about=about)

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        secret = {"VONAGE_SIGNATURE_SECRET": hashlib.sha256(b"secret" + seed).hexdigest()}
        application = {"VONAGE_APPLICATION_ID": str(uuid.UUID(bytes=seed[:16])), "VONAGE_PRIVATE_KEY": new_key()}
        password = hashlib.sha256(b"api" + seed).hexdigest()
        return secret, {**secret, **application, "VONAGE_API_KEY": password[:8], "VONAGE_API_SECRET": password[8:24]}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        # No message names the account.
        return (*super().new_ids(seed)[:2], "")

    def read_answer(self, body: bytes, content_type: str, *, base_url: str = "", first: bool = True) -> Document:
        # https://developer.vonage.com/en/voice/voice-api/ncco-reference
        actions = read_array(body.decode("utf-8", "replace"))
        skipped: list[str] = []
        for index, action in enumerate(actions):
            endpoint = _read_endpoint(action)
            if endpoint.get("type") == "websocket":
                return replace(_read_stream(endpoint, actions[index + 1 :]), skipped=skipped)
            if endpoint and not first:
                return NoStream("transferred", _describe(action), skipped)
            skipped.append(_describe(action))
        if first and actions and all(action["action"] in ("talk", "stream") for action in actions):
            return replace(turned_away(_message(actions[0])), skipped=skipped)
        told = ", ".join(skipped)[:WORDS_LIMIT] or "nothing"
        return NoStream("done", skipped=skipped, reason=f"the NCCO holds {told}, but connects to no websocket")


def _read_endpoint(action: Any) -> dict[str, Any]:
    """Return what an action connects to; nothing if it connects to nothing."""
    if not isinstance(action, dict) or not isinstance(action.get("action"), str):
        raise broken("bad-answer", f"an action of the NCCO is {shown(action)}, not an object that names its action")
    endpoints = action.get("endpoint") if action["action"] == "connect" else [{}]
    if not isinstance(endpoints, list) or len(endpoints) != 1 or not isinstance(endpoints[0], dict):
        raise broken("bad-answer", "connect needs an endpoint, which is an array with one object")
    return endpoints[0]


def _describe(action: Any) -> str:
    """Say what an action does, in a few words."""
    about = action.get("text") or _read_endpoint(action).get("number") or ""
    return f"{action['action']} {about}".strip()[:WORDS_LIMIT]


def _message(action: Any) -> str:
    """Return what an action says, or the address of what it plays."""
    text, urls = action.get("text"), action.get("streamUrl")
    return str(text or (urls[0] if isinstance(urls, list) and urls else "") or "nothing")


def _read_stream(endpoint: dict[str, Any], later: Sequence[Any]) -> StreamRequest:
    """
    Return the stream that an endpoint asks for, before the actions `later`.

    https://developer.vonage.com/en/voice/voice-api/ncco-reference#websocket-endpoint
    """
    uri, content_type = endpoint.get("uri"), endpoint.get("content-type")
    url = read_stream_url(uri if isinstance(uri, str) else "")
    clear = Finding("W3", "warn", "the stream's URL is ws://, which carries the call in the clear")
    wire = FORMATS.get(squeezed(str(content_type)))
    headers = read_inner({"headers": {}, **endpoint}, "headers", "bad-answer")
    if wire is None:
        raise broken("bad-answer", f"the content-type is {shown(content_type)}, which is none of Vonage's")
    if (size := len(json.dumps(headers, ensure_ascii=False).encode())) > HEADERS_LIMIT:
        raise broken("bad-answer", f"the headers have {size} bytes; Vonage takes {HEADERS_LIMIT}")
    return StreamRequest(
        url=urlunsplit(url._replace(fragment="")),
        # The first event names the call only if the NCCO does.
        parameters={"call_id": "", **read_parameters(headers)},
        format=wire,
        then=[_describe(each) for each in later],
        findings=[clear] if url.scheme == "ws" else [],
        rest=json.dumps(later).encode() if later else b"",
    )
