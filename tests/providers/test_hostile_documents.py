"""
Answer documents that somebody made to hurt their reader, or that are merely odd.

Whoever dials a webhook reads what its server answers: nothing but a :exc:`RemoteProtocolError` may come of it, soon and
in little memory.
"""

from __future__ import annotations

import time
import tracemalloc

import pytest

from tests.providers.companies import load_provider
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import StreamRequest

TWIML = '<Response><Connect><Stream url="wss://h/ws"/></Connect></Response>'
TEXML = (
    '<Response><Connect><Stream url="wss://h/ws" codec="PCMU" bidirectionalMode="rtp" enableReconnect="false"/>'
    "</Connect></Response>"
)
PLIVO = (
    '<Response><Stream bidirectional="true" keepCallAlive="true" contentType="audio/x-mulaw;rate=8000">wss://h/ws'
    "</Stream><Hangup/></Response>"
)
GOOD = {"twilio": TWIML, "telnyx": TEXML, "plivo": PLIVO, "signalwire": TWIML}

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha" * 50}">' for n in range(12))
HUGE = "a" * 60_000
#: More than any expat takes with its stack, and less than the limit of a document.
DEEP = "<a>" * 9000
BAD = {
    "entity bomb": f"<!DOCTYPE r [{LAUGHS}]><Response>&l11;</Response>",
    "entity bomb in an attribute": f'<!DOCTYPE r [{LAUGHS}]><Response><Connect a="&l11;"/></Response>',
    "external entity": '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><Response>&x;</Response>',
    "external document type": '<!DOCTYPE r SYSTEM "http://127.0.0.1:9/r.dtd"><Response/>',
    "entity that nobody declared": "<Response>&x;</Response>",
    "deeply nested": f"<Response>{DEEP}",
    "deeply nested and closed": f"<Response>{'<a>' * 9000}{'</a>' * 9000}</Response>"[:64000],
    "wrong root": "<Request/>",
    "root of another namespace": '<Response xmlns="urn:x"><Connect/></Response>',
    "lower case": "<response/>",
    "two roots": "<Response/><Response/>",
    "only a comment": "<!-- nothing -->",
    "only a declaration": '<?xml version="1.0"?>',
    "an unknown encoding": '<?xml version="1.0" encoding="EBCDIC-9"?><Response/>',
    "UTF-16 that says UTF-8": f'<?xml version="1.0" encoding="UTF-8"?>{TWIML}'.encode("utf-16"),
    "bytes that no encoding has": b"<Response>\xff\xfe\x00</Response>",
    "a NUL": "<Response>\x00</Response>",
    "half of a document": TWIML[: len(TWIML) // 2],
    "spaces": "   \n\t ",
    "JSON": '{"url": "wss://h/ws"}',
    "HTML": "<!doctype html><html><body>500</body></html>",
    "huge attribute as URL": f'<Response><Connect><Stream url="{HUGE}"/></Connect><Stream>{HUGE}</Stream></Response>',
    "huge tag": f"<Response><{HUGE}/></Response>",
    "huge verb's text": f"<Response><Say>{HUGE}</Say></Response>",
    "more than the limit": f"<Response>{'x' * 200_000}</Response>",
    "ten thousand verbs": f"<Response>{'<Say/>' * 10_000}</Response>",
}


def read(name: str, body: str | bytes) -> object:
    body = body.encode() if isinstance(body, str) else body
    return load_provider(name).read_answer(body, "application/xml", base_url="https://h/")


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("what", BAD)
def test_a_hostile_document_is_refused_soon_and_in_little_memory(name: str, what: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            read(name, BAD[what])
        took_s, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) <= 200
    assert caught.value.message.isprintable()
    # A 64 KiB document of elements takes a few MB as a tree; tracing makes it slow.
    assert peak < 16e6
    assert took_s < 3


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(lambda text: b"\xef\xbb\xbf" + text.encode(), id="byte-order mark"),
        pytest.param(lambda text: text.encode("utf-16"), id="UTF-16"),
        pytest.param(lambda text: ('<?xml version="1.0" encoding="ISO-8859-1"?>' + text).encode("latin-1"), id="Latin"),
        pytest.param(lambda text: ("\n<!-- a -->" + text + "<!-- b -->\n").encode(), id="comments around"),
        pytest.param(lambda text: text.replace(">", "><!-- c -->", 1).encode(), id="comment inside"),
        pytest.param(lambda text: text.replace("<Response>", "<Response><?pi x?>").encode(), id="instruction"),
        pytest.param(lambda text: ('<?xml version="1.0" standalone="yes"?>\r\n' + text).encode(), id="standalone"),
    ],
)
def test_an_odd_document_is_read_all_the_same(name: str, encoded: object) -> None:
    assert callable(encoded)
    request = read(name, encoded(GOOD[name]))
    assert isinstance(request, StreamRequest)
    assert request.url == "wss://h/ws"
    assert request.findings == []
