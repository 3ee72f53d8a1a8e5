"""
What Telnyx's error codes mean, and what mends them.

API errors: https://developers.telnyx.com/development/api-fundamentals/api-errors
Calls that Telnyx refuses: https://support.telnyx.com/en/articles/4409457-telnyx-sip-response-codes
Streams: https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
Ends of calls: https://developers.telnyx.com/api-reference/callbacks/call-hangup
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Explanation(NamedTuple):
    """
    What an error code means.

    Attributes:
        kind: As of :exc:`~wsvoice.errors.ApiError`.
        mend: What the user does about it; empty if there is nothing to do.
    """

    kind: str
    meaning: str
    mend: str = ""


_PROFILE = "in the portal under Voice > Outbound Voice Profiles"
_KEY = "set TELNYX_API_KEY to a key that the portal lists under API Keys"
_TRIAL = "verify the other number in the portal under Numbers > Verified Numbers, or upgrade the account"
_FROM = "call with a number of this account, or verify the number in the portal under Numbers > Verified Numbers"
_BUSY = "let calls end, or raise the limit"
_MONEY = "add funds in the portal under Billing"

CODES: Mapping[str, Explanation] = {
    # The API
    "10001": Explanation("number", "the phone number is inactive", "the portal shows its status under My Numbers"),
    "10002": Explanation("refused", "a phone number is invalid", "write it in E.164, such as +15551234567"),
    "10003": Explanation("refused", "a URL is invalid, or longer than 2000 characters"),
    "10004": Explanation("refused", "a required parameter is missing"),
    "10005": Explanation(
        "not-found", "there is no such resource", "check the id, and that the API key is of the account that owns it"
    ),
    "10006": Explanation("not-found", "an id is invalid"),
    "10007": Explanation(
        "unavailable", "an unexpected error at Telnyx's", "https://status.telnyx.com tells of its troubles"
    ),
    "10008": Explanation("unavailable", "the request timed out at Telnyx's", "try again"),
    "10009": Explanation("credentials", "the API key is wrong or missing", _KEY),
    "10010": Explanation(
        "permission", "the API key may not do that", "give the key the permission, or use one of the account's owner"
    ),
    "10011": Explanation("rate-limit", "there were too many requests", "wait a minute, then repeat"),
    "10012": Explanation("refused", "there is such a resource already"),
    "10015": Explanation("refused", "a parameter is wrong"),
    "10016": Explanation("refused", "a phone number is not in E.164", "write it with + and the country's code"),
    "10017": Explanation("not-found", "something that the request names does not exist"),
    "10021": Explanation("refused", "the resource is still in use"),
    "10023": Explanation("refused", "the request is no JSON"),
    "20100": Explanation("balance", "the account's credit does not suffice", _MONEY),
    # Commands
    "90015": Explanation(
        "not-found", "there is no such call", "the id is Telnyx's call_control_id, such as v3:..., in one piece"
    ),
    "90018": Explanation("ended", "the call has ended and takes no more commands"),
    # Calls that Telnyx refuses
    "D1": Explanation("refused", "the account has as many outbound calls as it may have at once", _BUSY),
    "D2": Explanation("refused", "the outbound voice profile has as many calls as it may have at once", _BUSY),
    "D3": Explanation("refused", "the application has as many calls as it may have at once", _BUSY),
    "D4": Explanation("refused", "the application takes no more inbound calls at once", _BUSY),
    "D5": Explanation("refused", "the numbers' channels are all in use", _BUSY),
    "D7": Explanation(
        "permission", "the application has no outbound voice profile", f"make one {_PROFILE}, and assign it there"
    ),
    "D9": Explanation("rate-limit", "the same international number was called too often within a minute", "wait"),
    "D10": Explanation("refused", "the account has as many outbound calls as it may have at once", _BUSY),
    "D11": Explanation("refused", "the called number is invalid", "write it in E.164, such as +15551234567"),
    "D12": Explanation(
        "permission", "the outbound voice profile's plan does not cover the called number", f"change it {_PROFILE}"
    ),
    "D13": Explanation(
        "permission", "the called number's country is not allowed", f"add it to the allowed destinations {_PROFILE}"
    ),
    "D14": Explanation("refused", "the called number is invalid", "write it in E.164, such as +15551234567"),
    "D15": Explanation("permission", "the outbound voice profile is disabled", f"enable it {_PROFILE}"),
    "D16": Explanation("permission", "the application is disabled", "enable it in the portal under Voice"),
    "D17": Explanation("permission", "the account is disabled", "ask support@telnyx.com why"),
    "D18": Explanation("permission", "the called number's application is disabled", "enable it in the portal"),
    "D19": Explanation("balance", "the called number's account is blocked for its balance", _MONEY),
    "D21": Explanation(
        "number", "the called number leads nowhere", "point it: wsvoice run --number, or in the portal under My Numbers"
    ),
    "D22": Explanation("refused", "a limit of calls at once is reached", _BUSY),
    "D24": Explanation(
        "permission", "the call costs more than the profile allows", f"raise its maximum rate {_PROFILE}"
    ),
    "D35": Explanation("number", "the calling number is invalid", "write --from in E.164, such as +15551234567"),
    "D36": Explanation("number", "the calling number belongs to somebody else", _FROM),
    "D37": Explanation("permission", "emergency numbers cannot be called through the API"),
    "D38": Explanation(
        "permission", "the application has no outbound voice profile", f"make one {_PROFILE}, and assign it there"
    ),
    "D39": Explanation("balance", "the day's limit for international calls is reached", "ask support@telnyx.com"),
    "D41": Explanation("permission", "calls to that range of numbers are forbidden", "ask support@telnyx.com"),
    "D44": Explanation(
        "not-found",
        "the application by which the call is placed does not exist",
        "set TELNYX_CONNECTION_ID to the id of a Call Control or TeXML application",
    ),
    "D46": Explanation("number", "the calling number may only be called", "call with another number"),
    "D49": Explanation("number", "the calling number is invalid", "call with another number"),
    "D50": Explanation("refused", "the called number is not in service", "check it"),
    "D51": Explanation("number", "the calling number is not verified", _FROM),
    "D53": Explanation("refused", "a number calls itself", "call another number"),
    "D54": Explanation("number", "the calling number is blocked for its reputation", "call with another number"),
    "D56": Explanation("refused", "the account's channels are all in use", _BUSY),
    "D58": Explanation("permission", "the called number is blocked", "ask support@telnyx.com"),
    "D59": Explanation("permission", "that special number cannot be called with this calling number"),
    "D60": Explanation("trial", "an account of this level calls verified numbers only", _TRIAL),
    "D61": Explanation("trial", "an account of this level is called from verified numbers only", _TRIAL),
    "D63": Explanation("number", "the calling number is still being ported", "call with another number until then"),
    "D64": Explanation("number", "the calling number's documents are missing", "the portal asks for them"),
    "D65": Explanation("number", "the called number's documents are missing", "the portal asks for them"),
    "PE1": Explanation("refused", "no route leads to the called number", "try again later"),
    "TM1": Explanation("permission", "Telnyx does not cover the called number", "check it"),
    "TV1": Explanation("refused", "other carriers could not complete the call", "try again later"),
    # Streams
    "100002": Explanation("refused", "an unknown error of the stream"),
    "100003": Explanation("refused", "the bot sent a message that is no JSON, or not one of the stream's"),
    "100004": Explanation(
        "refused",
        "the bot sent audio that Telnyx cannot read",
        "let wsvoice run send it, or send base64 of RTP payloads",
    ),
    "100005": Explanation("refused", "the bot sends faster than Telnyx takes", "send in real time, or fewer messages"),
    "connection_failed": Explanation(
        "refused",
        "the stream's WebSocket could not be opened",
        "check that the public address reaches wsvoice run and passes WebSocket upgrades: wsvoice doctor",
    ),
    # Ends of calls
    "normal_clearing": Explanation("ended", "one of the two hung up"),
    "originator_cancel": Explanation("ended", "the caller hung up before the answer"),
    "user_busy": Explanation("ended", "the called number was busy"),
    "call_rejected": Explanation("ended", "the call was declined, or refused on the way"),
    "no_answer": Explanation("ended", "nobody answered"),
    "timeout": Explanation("ended", "nobody answered in time", "let it ring longer: --timeout"),
    "time_limit": Explanation("ended", "the call reached its time limit", "allow more: --time-limit"),
    "not_found": Explanation("ended", "the called number does not exist", "check it"),
}


def explain(code: str) -> Explanation | None:
    """Return what a code means, however it is spelt; ``None`` for an unknown one."""
    written = code.strip()
    return CODES.get(written) or CODES.get(written.upper()) or CODES.get(written.lower())
