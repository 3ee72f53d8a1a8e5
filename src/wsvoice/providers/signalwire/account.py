"""
SignalWire's compatibility API as the owner of a project uses it: Twilio's, with paths, hosts and gaps of its own.

https://developer.signalwire.com/rest/compatibility-api/overview
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from wsvoice.call import Call
from wsvoice.errors import ApiError
from wsvoice.providers.account import ApiResponse, Evidence, Steps
from wsvoice.providers.signalwire.company import SignalWireCompany
from wsvoice.providers.twilio.account import TwilioAccount
from wsvoice.providers.twilio.error_codes import ERROR_CODES, ErrorCode

_FROM = "`--from` takes a number of the project's, or one that it has verified"
_TRIAL = "pay in, which ends the trial: https://developer.signalwire.com/guides/trial-mode"
#: Codes that mean what they mean at Twilio, and are mended on our side.
_SHARED = ("11200", "11210", "11215", "11217", "11750", "12100", "12300", "21217", "31922")


class SignalWireAccount(SignalWireCompany, TwilioAccount):
    """What ``wsvoice run --number -t signalwire`` and ``wsvoice dial +1... -t signalwire`` need of SignalWire."""

    needed: ClassVar[tuple[str, ...]] = ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN")
    credentials_place: ClassVar[str] = "all are on the page API of your space, https://SPACE.signalwire.com/credentials"
    #: https://developer.signalwire.com/rest/compatibility-api/overview/error-codes
    error_codes: ClassVar[Mapping[str, ErrorCode]] = {
        **{code: ERROR_CODES[code] for code in _SHARED},
        "4001": ErrorCode("the balance does not cover it", "pay in", "balance"),
        "10001": ErrorCode("the space may not do that", "ask SignalWire's support", "permission"),
        "10002": ErrorCode("trial accounts cannot do that", _TRIAL, "trial"),
        "20003": ErrorCode(
            "the credentials are not the project's",
            "SIGNALWIRE_PROJECT_ID, SIGNALWIRE_API_TOKEN and SIGNALWIRE_SPACE belong together, and the token needs "
            "the scopes Voice and Numbers",
            "credentials",
        ),
        "20404": ErrorCode(
            "there is no such thing in this project", "see that it is not another project's", "not-found"
        ),
        "21210": ErrorCode("the number to call from is neither the project's nor verified", _FROM, "number"),
        "21212": ErrorCode("a number is not in the right form", "write it in E.164: +, country code, number"),
        "21219": ErrorCode("a trial calls verified and purchased numbers only", _TRIAL, "trial"),
        "30010": ErrorCode("the call costs more than the limit that was named", "raise the limit"),
    }
    #: https://developer.signalwire.com/guides/trial-mode
    trial_limits: ClassVar[Sequence[str]] = (
        "calls come from and go to purchased and verified numbers only",
        "no calls go abroad",
        "two numbers at most",
    )
    #: A request that updates a completed call has "10000", which at any other time says that an argument is not valid.
    over_codes: ClassVar[frozenset[str]] = TwilioAccount.over_codes | {"10000"}
    #: https://developer.signalwire.com/compatibility-api/client-sdks/methods/calls/create
    has_time_limit: ClassVar[bool] = False
    has_regions: ClassVar[bool] = False

    def api_url(self, product: str = "api") -> str:
        """Return where the space's API is, without a slash at the end; the space may be named with its domain."""
        if base := self.credential("SIGNALWIRE_API_BASE_URL"):
            return base.rstrip("/")
        space = self.credential("SIGNALWIRE_SPACE").partition("://")[2] or self.credential("SIGNALWIRE_SPACE")
        host = space.partition("/")[0]
        return f"https://{host if '.' in host else f'{host}.signalwire.com'}"

    def error_content(self, response: ApiResponse) -> Mapping[str, Any]:
        # Some refusals are listed: https://developer.signalwire.com/compatibility-api/client-sdks/methods/calls/create
        content = response.content()
        listed = content.get("errors")
        return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else content

    def transfer(self, call: Call, to: str) -> Steps[None]:
        """
        Connect the caller to `to`, by the document at :attr:`transfer_url`, for a request takes none.

        https://developer.signalwire.com/compatibility-api/client-sdks/methods/calls/update
        """
        if not self.transfer_url:
            raise ApiError(
                "unsupported",
                "SignalWire's API gives a running call only documents that lie at an address, and none is served",
                hint="start the server with -x DOMAIN or --tunnel ngrok",
            )
        fields = [("Url", f"{self.transfer_url}?{urlencode({'to': to})}"), ("Method", "POST")]
        request = self._post(self._call_resource(call.call_id, call.account_id), fields)
        yield from self._ask(request, f"the transfer of the call {call.call_id}", "sid")

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        raise ApiError(
            "unsupported",
            "SignalWire's API presses no keys in a call that goes on",
            hint="let the bot play the tones into its stream: pipecat does so for an OutputDTMFFrame",
        )
        yield

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        # A call's notifications are always null, and nothing else is listed of it.
        # https://developer.signalwire.com/compatibility-api/client-sdks/methods/calls
        raise self._lacks("records nothing of a call that can be read; the space's page Logs does")
        yield
