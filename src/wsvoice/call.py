"""The word that all layers share: a telephone call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["inbound", "outbound"]
Control = Literal["document", "api"]


@dataclass(frozen=True, slots=True)
class Call:
    """
    One telephone call, as far as its provider has told us about it.

    Attributes:
        provider: The provider's name, as in ``wsvoice run -t NAME``.
        call_id: The provider's id of the call (Twilio's ``CallSid``, Telnyx's ``call_control_id`` …).
        stream_id: The id of its media stream; empty until the stream has started.
        account_id: The account that owns the call; a sub-account's id if the number belongs to one.
        from_number: Who rings; E.164 where the provider knows it, else what it says (``client:…``, ``sip:…``).
        to_number: Who is rung.
        direction: ``inbound`` when the caller rang the bot, ``outbound`` when the bot rang out.
        parameters: The user's own parameters (``--param``, TwiML ``<Parameter>`` …).
        control: How the call is told what to do: by the ``document`` that its webhook is answered with, or by
            requests to the provider's ``api`` (Telnyx's Call Control).
    """

    provider: str
    call_id: str
    stream_id: str = ""
    account_id: str = ""
    from_number: str = ""
    to_number: str = ""
    direction: Direction = "inbound"
    parameters: Mapping[str, str] = field(default_factory=dict)
    control: Control = "document"
