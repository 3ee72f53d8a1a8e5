"""Writing answer documents: the XML with which a webhook tells a provider what to do with a call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, tostring

if TYPE_CHECKING:
    from wsvoice.providers.base import BusyMessage

# What XML 1.0 has no way to write, not even escaped: https://www.w3.org/TR/xml/#charsets
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(name: str, attributes: Mapping[str, str] | None = None, *content: Element | str) -> Element:
    """Return an element with its content; characters that XML cannot hold become U+FFFD."""
    made = Element(name, {key: _writable(value) for key, value in (attributes or {}).items()})
    for each in content:
        if isinstance(each, str):
            made.text = _writable(each)
        else:
            made.append(each)
    return made


def document(*verbs: Element) -> str:
    """Render a whole document of `verbs`, inside of the ``<Response>`` that all dialects share."""
    root = element("Response", None, *verbs)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, "unicode").replace(" />", "/>")


def busy_document(message: BusyMessage, *, say: str = "Say", play: str = "Play") -> str:
    """Render the document that says or plays a `message`, by verbs of these names, and then hangs up."""
    told = element(say, None, message.text) if message.text else element(play, None, message.sound_url)
    return document(told, element("Hangup"))


def _writable(value: str) -> str:
    return _UNWRITABLE.sub("\ufffd", value)
