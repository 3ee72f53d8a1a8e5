"""Twilio's stream messages: https://www.twilio.com/docs/voice/media-streams/websocket-messages"""

from __future__ import annotations

from typing import Any, ClassVar

from wsvoice.providers.events import Digit, Event, StreamStopped
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.judged_stream import JudgedStream


class TwilioStream(JsonStream):
    """One end of a Media Stream."""

    def carrier_content(self, event: Event) -> Any:
        if isinstance(event, Digit):
            # The track is inbound_track here though it is inbound in media: so it is documented.
            return {"track": "inbound_track", "digit": event.digit}
        if isinstance(event, StreamStopped):
            return {"accountSid": self.account_id, "callSid": self.call_id}
        return super().carrier_content(event)


class TwilioMirror(TwilioStream, JudgedStream):
    """
    The carrier's end, which looks at what a bot sends.

    Twilio names no limit of a message; WebSocket servers elsewhere stop at 64 KiB.
    """

    #: https://www.twilio.com/docs/api/errors/31951
    unknown_error: ClassVar[str] = " (error 31951)"
