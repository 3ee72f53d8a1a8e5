"""A telephone call, as all layers know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["inbound", "outbound"]
Control = Literal["document", "api"]


@dataclass(frozen=True, slots=True)
class Call:
    """
    One telephone call, with what its provider says about it.

    Attributes:
        provider: The provider's name, as in ``wsvoice run -t NAME``.
        call_id: The provider's id of the call (Twilio's ``CallSid``, Telnyx's ``call_control_id`` …).
        stream_id: The id of its media stream; empty until the stream has started.
        account_id: The account that owns the call; a sub-account's id if the number belongs to one.
        from_number: Who calls, in E.164 if the provider knows it, else as it says (``client:…``, ``sip:…``).
        to_number: Who is called.
        direction: ``inbound`` if the bot is called, ``outbound`` if the bot calls.
        parameters: The user's own parameters (``--param``, TwiML ``<Parameter>`` …).
        control: How the call is controlled: by the ``document`` in the webhook's answer, or by requests to the
            provider's ``api`` (Telnyx's Call Control).
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
