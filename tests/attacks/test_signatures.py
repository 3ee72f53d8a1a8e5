"""Signed webhooks that a stranger has caught, and sends again in other words."""

from __future__ import annotations

import base64
import dataclasses
import string
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.process import ServerProcess, server_process
from wsvoice.providers.base import WebhookRequest
from wsvoice.providers.plivo import Plivo
from wsvoice.providers.telnyx import Telnyx

SEED = bytes(range(32))
PLIVO = Plivo({"PLIVO_AUTH_TOKEN": "a token for tests"})
TELNYX = Telnyx({"TELNYX_PRIVATE_KEY": base64.b64encode(SEED).decode()})
BOT = """
async def bot(runner_args):
    pass
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    secrets = {
        "PLIVO_AUTH_TOKEN": "a token for tests",
        "TELNYX_PUBLIC_KEY": "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",
    }
    with server_process(tmp_path_factory.mktemp("server"), BOT, **secrets) as process:
        yield process


def sent(request: WebhookRequest) -> int:
    answer = httpx.request(request.method, request.url, headers=dict(request.headers), content=request.body)
    return answer.status_code


def caught_plivo(server: ServerProcess, *, to_number: str = "+15550100002", seed: bytes = SEED) -> WebhookRequest:
    call = PLIVO.new_call(from_number="+15550100001", to_number=to_number, parameters={}, seed=seed)
    return PLIVO.sign(PLIVO.webhook(call, f"{server.url}plivo"), now=time.time())


def without_version_3(request: WebhookRequest) -> WebhookRequest:
    headers = {name: value for name, value in request.headers.items() if "signature-v3" not in name}
    return dataclasses.replace(request, headers=headers)


def test_plivos_older_signature_lets_no_other_fields_in(server: ServerProcess) -> None:
    caught = caught_plivo(server)
    older = without_version_3(caught)
    forged = b"CallUUID=12345678-1234-1234-1234-123456789abc&CallStatus=ringing&Event=StartApp&From=1&To=2"
    assert sent(dataclasses.replace(older, body=forged)) == 403
    assert sent(dataclasses.replace(older, method="GET", body=b"", url=f"{older.url}?{forged.decode()}")) == 403
    assert sent(older) == 403
    assert sent(caught) == 200
    assert sent(caught) == 403


def test_no_text_moves_from_plivos_form_to_its_nonce(server: ServerProcess) -> None:
    # What stands last of the sorted fields is followed by a dot and the nonce.
    caught = caught_plivo(server, to_number="sip:a.b", seed=SEED[::-1])
    nonce = caught.headers["x-plivo-signature-v3-nonce"]
    assert b"To=sip%3Aa.b" in caught.body
    headers = {**caught.headers, "x-plivo-signature-v3-nonce": f"b.{nonce}"}
    moved = dataclasses.replace(caught, headers=headers, body=caught.body.replace(b"To=sip%3Aa.b", b"To=sip%3Aa"))
    assert sent(moved) == 403
    assert sent(caught) == 200
    assert sent(moved) == 403


def test_telnyxs_signature_passes_once_however_it_is_written(server: ServerProcess) -> None:
    call = TELNYX.new_call(from_number="+15550100001", to_number="+15550100002", parameters={}, seed=SEED)
    caught = TELNYX.sign(TELNYX.webhook(call, f"{server.url}telnyx"), now=time.time())
    assert sent(caught) == 200
    signature = caught.headers["telnyx-signature-ed25519"]
    statuses = [
        sent(
            dataclasses.replace(
                caught, headers={**caught.headers, "telnyx-signature-ed25519": f"{signature[:-3]}{last}=="}
            )
        )
        for last in string.ascii_letters + string.digits + "+/"
    ]
    assert statuses == [403] * 64
