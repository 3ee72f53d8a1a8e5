"""The document that connects a call to somebody else: https://www.twilio.com/docs/voice/twiml/dial"""

from __future__ import annotations

import re

from wsvoice.errors import ApiError
from wsvoice.providers.fields import shown
from wsvoice.providers.xml_writer import document, element

_NUMBER = re.compile(r"\+[1-9]\d{1,14}")
_SIP = re.compile(r"sips?:[!-~]{1,250}", re.IGNORECASE)


def dial_document(to: str) -> str:
    """Return the document that dials `to`; an :exc:`~wsvoice.errors.ApiError` is raised if that cannot be dialled."""
    return document(element("Dial", None, element(_noun_of(to), None, to)))


def _noun_of(to: str) -> str:
    """Return the element of ``<Dial>`` for whom a call is connected to: https://www.twilio.com/docs/voice/twiml/dial"""
    if _NUMBER.fullmatch(to):
        return "Number"
    if _SIP.fullmatch(to):
        return "Sip"
    raise ApiError(
        "number",
        f"{shown(to)} is neither a phone number nor a SIP address",
        hint="write a number as +15551234567, a SIP address as sip:name@example.com",
    )
