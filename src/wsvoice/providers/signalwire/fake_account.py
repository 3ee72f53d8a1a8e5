"""A project of SignalWire's without SignalWire: Twilio's account, with ids, answers and gaps of its own."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from wsvoice.providers.call_statuses import SIP_CODES
from wsvoice.providers.fake_account import FakeCall
from wsvoice.providers.twilio.fake_account import TwilioFakeAccount


class SignalWireFakeAccount(TwilioFakeAccount):
    """What a SignalWire project has: https://developer.signalwire.com/rest/compatibility-api/overview"""

    placed_status: ClassVar[int] = 200
    takes_documents: ClassVar[bool] = False
    has_records: ClassVar[bool] = False
    trial_limit_s: ClassVar[float | None] = None
    #: https://developer.signalwire.com/rest/compatibility-api/overview/error-codes
    over: ClassVar[tuple[int, str]] = (10000, "Call is completed and cannot be updated")

    def new_id(self, prefix: str) -> str:
        return str(uuid.UUID(bytes=self.new_seed()[:16], version=4))

    def error_page(self, code: int) -> str:
        return self.company.codes_page

    def call_resource(self, call: FakeCall) -> dict[str, Any]:
        # https://developer.signalwire.com/compatibility-api/client-sdks/methods/calls
        resource = super().call_resource(call)
        price, duration = resource["price"], resource["duration"]
        return resource | {
            "answered_by": call.answered_by if call.answered_by in ("human", "machine") else None,
            "duration": int(duration) if duration else 0,
            "price": float(price) if price else None,
            "formatted_from": call.call.from_number,
            "formatted_to": call.call.to_number,
            "sip_result_code": str(SIP_CODES[call.stage]) if call.stage in SIP_CODES else None,
            "subresource_uris": {
                "notifications": None,
                "recordings": f"{resource['uri'].removesuffix('.json')}/Recordings.json",
            },
        }
