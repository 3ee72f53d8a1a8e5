"""
``/dial``: an application, or ``wsvoice dial +1...``, lets a running server place calls.

=====================  ==============================================================================
``POST /dial``         places a call; 201 with its ``id``
``GET /dial/<id>``     what has happened in it; with ``?after=N`` waits until there is more than N events
``DELETE /dial/<id>``  hangs up
=====================  ==============================================================================

Calls cost money, so all of it is behind a key, ``Authorization: Bearer KEY``, and there is no such address without one.
The key in ``WSVOICE_DIAL_KEY`` is for applications, wherever they run. The server's own key is in a file that only its
owner may read (:mod:`wsvoice.phone.runs`), and is for programs on this machine.
"""

from __future__ import annotations

import hmac
import json
import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from loguru import logger
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wsvoice.config import DIAL_KEY, Voicemail
from wsvoice.config.settings import MAX_DURATION_S, MAX_RING_S
from wsvoice.errors import ApiError, ServerError, UsageError, WsvoiceError
from wsvoice.providers.account import Detection
from wsvoice.runner import requests
from wsvoice.runner.dialled_call import DialledCall, DialRequest

if TYPE_CHECKING:
    from wsvoice.providers.base import Server
    from wsvoice.runner.switchboard import Switchboard
    from wsvoice.runner.upgrade import Predecessor

#: How long a question for more events is kept open.
POLL_S = 25.0
#: How many parameters a call may have, and characters each.
MAX_PARAMETERS, PARAMETER_LIMIT = 50, 2000

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
_ID = re.compile(r"[A-Za-z0-9_-]{22,64}")
_FIELDS = frozenset(
    {"id", "to", "from", "provider", "parameters", "ring_timeout_s", "time_limit_s", "detection", "voicemail"}
)


class DialApi:
    """
    The routes under ``/dial``.

    Attributes:
        own_key: The key for programs on this machine; empty for none.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._key = switchboard.config.credentials.get(DIAL_KEY, "")
        self.own_key = ""

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/dial", self._place, methods=["POST"]),
            Route("/dial/{id}", self._tell, methods=["GET"]),
            Route("/dial/{id}", self._hang_up, methods=["DELETE"]),
        ]

    async def _place(self, request: Request) -> Response:
        if (refused := self._refusal(request)) is not None:
            return refused
        switchboard = self._switchboard
        try:
            body = await requests.read_body(request, switchboard.config.message_limit)
        except requests.BodyError as error:
            return requests.close_after(_error(error.status, str(error)))
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return _error(400, "the body is not JSON", hint='send an object such as {"to": "+15551234567", ...}')
        try:
            provider = self._provider(content.get("provider") if isinstance(content, dict) else None)
            wanted, chosen_id = read_dial_request(content), read_id(content)
            if switchboard.dialled.by_id(chosen_id) is not None:
                return _error(409, "a call of that id was placed before", hint="choose another id for each call")
            public_url = switchboard.config.public_url
            if public_url is None:
                raise UsageError(
                    "the server has no public address, so no provider could reach it",
                    hint="start it with -x DOMAIN or --tunnel ngrok",
                )
            prefix = request.scope["path"].removesuffix("/dial")
            dialled = await switchboard.dialled.place(provider, wanted, public_url + prefix, chosen_id)
        except WsvoiceError as error:
            logger.warning("no call placed: {}", requests.with_hint(error))
            return _refused(error)
        placed = {"provider": provider.name, "call_id": dialled.call.call_id, "stage": dialled.stage}
        return JSONResponse({"id": dialled.id, **placed}, 201)

    async def _tell(self, request: Request) -> Response:
        if (known := self._predecessor(request)) is not None:
            return await known.relay(request)
        dialled = self._find(request)
        if isinstance(dialled, Response):
            return dialled
        written = request.query_params.get("after", "0")
        after = int(written) if re.fullmatch(r"[0-9]{1,9}", written) else 0
        if "after" in request.query_params and len(dialled.events) <= after and not _is_told(dialled):
            await dialled.changed(POLL_S)
        events = [asdict(each) for each in dialled.events[after:]]
        return JSONResponse({"events": events, "ended": _is_told(dialled), "call": dialled.summary()})

    async def _hang_up(self, request: Request) -> Response:
        if (known := self._predecessor(request)) is not None:
            return await known.relay(request)
        dialled = self._find(request)
        if isinstance(dialled, Response):
            return dialled
        try:
            goes_on = await self._switchboard.dialled.end(dialled, "hung up by request")
        except WsvoiceError as error:
            return _refused(error)
        return JSONResponse({"ended": False, "text": goes_on}, 202) if goes_on else JSONResponse({"ended": True})

    def _predecessor(self, request: Request) -> Predecessor | None:
        """Return the server that this one has taken over from if it has placed the call; it checks the key itself."""
        known = self._switchboard.predecessor
        return known if known is not None and known.knows(request.path_params["id"]) else None

    def _find(self, request: Request) -> DialledCall | Response:
        refused = self._refusal(request)
        if refused is not None:
            return refused
        dialled = self._switchboard.dialled.by_id(request.path_params["id"])
        return dialled or _error(404, "no call of that id was placed by this server")

    def _refusal(self, request: Request) -> Response | None:
        """Return the answer for whoever has no key; ``None`` for who has one."""
        keys = [self._key] if self._key else []
        if self.own_key and requests.is_local_program(request):
            keys.append(self.own_key)
        if not keys:
            return _error(404, "this server places no calls for others", hint=f"start it with {DIAL_KEY} set")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.strip().encode()
        if scheme.lower() == "bearer" and any(hmac.compare_digest(key.encode(), sent) for key in keys):
            return None
        self._switchboard.refusals.warning(logger, "dial refused (401)", "the key is missing or wrong")
        return _error(401, "the key is missing or wrong", hint="send it as `Authorization: Bearer KEY`")

    def _provider(self, name: object) -> Server:
        providers = self._switchboard.providers
        if name is None and len(providers) == 1:
            return next(iter(providers.values()))
        if not isinstance(name, str) or name not in providers:
            served = ", ".join(providers)
            raise UsageError(
                "the call's provider is not named" if name is None else f"the server does not serve {name!r:.40}",
                hint=f"it serves {served}",
            )
        return providers[name]


def read_dial_request(content: object) -> DialRequest:
    """
    Read the body of ``POST /dial``.

    Raises:
        UsageError: If it is not one.
    """
    if not isinstance(content, dict):
        raise UsageError("the body is not a JSON object", hint='such as {"to": "+15551234567", "from": "+15557654321"}')
    if unknown := sorted(content.keys() - _FIELDS):
        raise UsageError(f"there is no field {unknown[0]!r:.40}", hint=f"known are {', '.join(sorted(_FIELDS))}")
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict) or not all(isinstance(each, str) for each in parameters.values()):
        raise UsageError("parameters is not an object of texts", hint='such as {"language": "en"}')
    if len(parameters) > MAX_PARAMETERS or any(len(k) + len(v) > PARAMETER_LIMIT for k, v in parameters.items()):
        raise UsageError(f"a call has at most {MAX_PARAMETERS} parameters of {PARAMETER_LIMIT} characters")
    return DialRequest(
        to_number=_number(content, "to"),
        from_number=_number(content, "from"),
        parameters=parameters,
        ring_timeout_s=_seconds(content, "ring_timeout_s", 60, most=MAX_RING_S),
        time_limit_s=_seconds(content, "time_limit_s", None, most=MAX_DURATION_S),
        detection=_choice(content, "detection", get_args(Detection), None),
        voicemail=_choice(content, "voicemail", get_args(Voicemail), "bot"),
    )


def read_id(content: dict[str, Any]) -> str:
    """
    Return the id that whoever asks has chosen for a call; empty for none.

    Raises:
        UsageError: If it could be guessed, or does not fit into an address.
    """
    chosen = content.get("id")
    if chosen is None:
        return ""
    if not isinstance(chosen, str) or not _ID.fullmatch(chosen):
        raise UsageError(f"id is {chosen!r:.40}", hint="choose 22 to 64 characters of A-Z a-z 0-9 _ -, at random")
    return chosen


def _number(content: dict[str, Any], name: str) -> str:
    number = content.get(name)
    if not isinstance(number, str) or not _E164.fullmatch(number):
        raise UsageError(f"{name} is no telephone number: {number!r:.40}", hint="write it in full: +15551234567")
    return number


def _seconds(content: dict[str, Any], name: str, default: Any, *, most: int) -> Any:
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"{name} is {value!r:.40}, not a number of seconds from 1 to {most}")
    return int(value)


def _choice(content: dict[str, Any], name: str, choices: tuple[str, ...], default: Any) -> Any:
    value = content.get(name)
    if value is None:
        return default
    if value not in choices:
        raise UsageError(f"{name} is {value!r:.40}", hint=f"it is one of {', '.join(choices)}")
    return value


def _is_told(dialled: DialledCall) -> bool:
    """Whether a call is over and all is known of it: its session has ended too."""
    return dialled.is_over and dialled.session is None


def _refused(error: WsvoiceError) -> JSONResponse:
    """Return the answer to a request that failed."""
    kind = error.kind if isinstance(error, ApiError) else ""
    status = {"rate-limit": 429, "withdrawn": 409}.get(kind, 502)
    if isinstance(error, UsageError):
        status = 400
    elif isinstance(error, ServerError):
        status = 503
    answer = _error(status, error.message, hint=error.hint, kind=kind)
    if (wait_s := getattr(error, "retry_after_s", None)) is not None:
        answer.headers["Retry-After"] = str(math.ceil(wait_s))
    return answer


def _error(status: int, message: str, *, hint: str | None = None, kind: str = "") -> JSONResponse:
    return JSONResponse({"error": message, "hint": hint or "", "kind": kind}, status)
