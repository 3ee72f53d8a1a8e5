"""Why a call ended, by Plivo's codes: https://docs.plivo.com/docs/voice/troubleshooting/hangup-causes"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wsvoice.call import Stage


class HangupCause(NamedTuple):
    """
    One of the causes.

    Attributes:
        name: As Plivo writes it.
        meaning: What happened, in one line.
        mend: What mends it; empty if there is nothing to mend.
        stage: How a call ended that nobody had answered.
    """

    name: str
    meaning: str
    mend: str = ""
    stage: Stage = "failed"


_CONSOLE_GEO = "enable it in the console under Voice > Geo Permissions"
_RETRY = "try again later"
_SUPPORT = "ask Plivo's support, with the call's UUID"
_REACHABLE = "check that the address answers from outside with 200: a tunnel that has stopped is the usual cause"
_XML = "look at what the address answers: it must be Plivo XML, with <Response> around it"

HANGUP_CAUSES: Mapping[str, HangupCause] = {
    "0": HangupCause("Unknown", "Plivo does not know why the call ended", "look at the call's log in the console"),
    "1000": HangupCause("Canceled", "a request to the API canceled the call before it was answered", "", "canceled"),
    "1010": HangupCause(
        "Canceled (Out Of Credits)",
        "the account has no credit left",
        "add credit, or enable auto-recharge, under Billing in the console",
    ),
    "1020": HangupCause(
        "Canceled (Simultaneous dial limit reached)",
        "too many calls to this destination at once",
        "place fewer calls to it at the same time",
    ),
    "2000": HangupCause(
        "Invalid Destination Address", "the number called is not valid", "write it in E.164, such as +15551234567"
    ),
    "2010": HangupCause("Destination Out Of Service", "the number called is out of service", "check the number"),
    "2020": HangupCause(
        "Endpoint Not Registered", "the SIP endpoint called is not registered", "check that it is logged in"
    ),
    "2030": HangupCause(
        "Destination Country Barred", "the account may not call this country", f"if you need it, {_CONSOLE_GEO}"
    ),
    "2040": HangupCause(
        "Destination Number Barred", "the account may not call this premium number", f"if you need it, {_CONSOLE_GEO}"
    ),
    "2050": HangupCause(
        "Destination Prefix Barred", "the account may not call this prefix", f"if you need it, {_CONSOLE_GEO}"
    ),
    "2060": HangupCause("Loop Detected", "the call would ring the number that it came from", "dial another number"),
    "2070": HangupCause(
        "Violates Media Anchoring",
        "a call of India's telephone network left the country",
        "run the server in India: both legs and the stream must stay there",
    ),
    "3000": HangupCause("No Answer", "the destination cannot be reached, or does not answer", _RETRY, "no-answer"),
    "3010": HangupCause("Busy Line", "the line is busy", _RETRY, "busy"),
    "3020": HangupCause("Rejected", "whoever was called declined the call", "", "busy"),
    "3030": HangupCause(
        "Unknown Caller ID",
        "the caller ID is not a number of this Plivo account's",
        "call from a number that the account rents",
    ),
    "3040": HangupCause("Forbidden", "the destination blocks the caller", "call from another number"),
    "3050": HangupCause("Unallocated number", "the number called does not exist", "check the number"),
    "3070": HangupCause("Request timeout", "the carrier did not respond in time", _RETRY),
    "3080": HangupCause("Internal server error from carrier", "the carrier had an error of its own", _RETRY),
    "3090": HangupCause("Network congestion from carrier", "the carrier's network is overloaded", _RETRY),
    "3100": HangupCause("Busy everywhere", "every line of the destination is busy", _RETRY, "busy"),
    "3110": HangupCause("Declined", "the destination declined the call", "", "busy"),
    "3120": HangupCause("User does not exist anywhere", "nobody has the number called", "check the number"),
    "3130": HangupCause(
        "Spam block", "the carrier blocks the caller ID as spam", "register the number for STIR/SHAKEN, or use another"
    ),
    "3140": HangupCause(
        "DNO Caller ID", "the caller ID is on the list of numbers that never call", "call from another number"
    ),
    "4000": HangupCause("Normal Hangup", "the call ended normally", "", "completed"),
    "4010": HangupCause(
        "End Of XML Instructions",
        "there were no more XML instructions",
        "if that was at once after the answer, the stream was refused or the bot ended: read the server's log",
        "completed",
    ),
    "4020": HangupCause("Multiparty Call Ended", "the multiparty call ended", "", "completed"),
    "4030": HangupCause("Kicked Out Of Multiparty Call", "a request removed the participant", "", "completed"),
    "5000": HangupCause("Network Error", "Plivo's network failed", _SUPPORT),
    "5010": HangupCause("Internal Error", "Plivo had an error of its own", _SUPPORT),
    "5020": HangupCause("Routing Error", "Plivo found no route to the destination", _SUPPORT),
    "6000": HangupCause("Scheduled Hangup", "the call reached its time limit", "allow it more time", "completed"),
    "6010": HangupCause(
        "Ring Timeout Reached", "nobody answered in the time allowed", "let it ring for longer", "no-answer"
    ),
    "6020": HangupCause(
        "Media Timeout", "no audio came for 60 seconds", "check the network of whoever was called", "completed"
    ),
    "7011": HangupCause("Error Reaching Answer URL", "the answer URL did not answer with success", _REACHABLE),
    "7012": HangupCause("Error Reaching Action URL", "an action URL did not answer with success", _REACHABLE),
    "7013": HangupCause("Error Reaching Transfer URL", "the transfer's URL did not answer with success", _REACHABLE),
    "7014": HangupCause("Error Reaching Redirect URL", "a redirect's URL did not answer with success", _REACHABLE),
    "7022": HangupCause("Invalid Action URL", "an action URL is none", "write it in full, with https://"),
    "7023": HangupCause("Invalid Transfer URL", "the transfer's URL is none", "write it in full, with https://"),
    "7024": HangupCause("Invalid Redirect URL", "a redirect's URL is none", "write it in full, with https://"),
    "7032": HangupCause("Invalid Method For Action URL", "an action's method is unknown", "use GET or POST"),
    "7033": HangupCause("Invalid Method For Transfer URL", "the transfer's method is unknown", "use GET or POST"),
    "7034": HangupCause("Invalid Method For Redirect URL", "a redirect's method is unknown", "use GET or POST"),
    "8011": HangupCause("Invalid Answer XML", "the answer URL did not answer with valid Plivo XML", _XML),
    "8012": HangupCause("Invalid Action XML", "an action URL did not answer with valid Plivo XML", _XML),
    "8013": HangupCause("Invalid Transfer XML", "the transfer's URL did not answer with valid Plivo XML", _XML),
    "8014": HangupCause("Invalid Redirect XML", "a redirect's URL did not answer with valid Plivo XML", _XML),
    "9000": HangupCause("Lost Race", "another phone that rang answered first", "", "canceled"),
    "9100": HangupCause("Machine Detected", "an answering machine answered, and the call was to end then"),
    "9110": HangupCause("Confirm Key Challenge Failed", "whoever answered did not press the key asked for"),
}
#: How calls usually end, by their stage.
USUAL_CAUSES: Mapping[Stage, str] = {
    "completed": "4000",
    "busy": "3010",
    "no-answer": "6010",
    "failed": "2000",
    "canceled": "1000",
}
