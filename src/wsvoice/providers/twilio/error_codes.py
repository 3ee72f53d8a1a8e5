"""
Twilio's error codes that concern calls, and what mends them: https://www.twilio.com/docs/api/errors

Some say why the API refuses a request, others are what its debugger shows of a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_ANSWER = "look at what `wsvoice run` logged: 403 is the signature, 404 another path, 502 to 504 the tunnel or proxy"
_CERTIFICATE = "use a tunnel, or give the proxy before wsvoice a certificate that browsers accept, with its whole chain"
_TRIAL = "upgrade the account, or call a verified number: https://www.twilio.com/docs/usage/trials"
_VERIFIED = "https://console.twilio.com/us1/develop/phone-numbers/manage/verified"
_GEO = "https://console.twilio.com/us1/develop/voice/settings/geo-permissions"
_FROM = "`--from` takes a number of the account's, or one that it has verified as caller ID"
_E164 = "write it in E.164: +, country code, number, nothing else"
_FOREIGN = "something else answers in wsvoice's place, such as a proxy's error page: look at the address with a browser"
_OURS = "wsvoice did not write that document: see that the number's webhook is its address"
_INACTIVE = "see the console: a trial that has expired is upgraded, a suspended account is settled"
_SIP = "see that the SIP address is right, and that its server is up and lets Twilio in"


class ErrorCode(NamedTuple):
    """
    What a code means.

    Attributes:
        kind: As :exc:`~wsvoice.errors.ApiError` has it, where a request is refused with this code.
    """

    meaning: str
    mend: str
    kind: str = "refused"


ERROR_CODES: Mapping[str, ErrorCode] = {
    # The account
    "10001": ErrorCode("the account is not active", _INACTIVE, "permission"),
    "10002": ErrorCode("trial accounts cannot do that", _TRIAL, "trial"),
    "10003": ErrorCode("a call was turned away because the account is not active", _INACTIVE, "permission"),
    "10004": ErrorCode("the account has as many calls at once as it may", "wait until one has ended", "rate-limit"),
    "10005": ErrorCode("calls are switched off for the account", "ask Twilio's support", "permission"),
    # The webhook
    "11100": ErrorCode("an address is no URL", "see what -x names, and what the number's webhook is"),
    "11200": ErrorCode("no usable answer came from the webhook", _ANSWER),
    "11205": ErrorCode(
        "nothing could be reached at the webhook's address", "see that `wsvoice run` and its tunnel are up"
    ),
    "11210": ErrorCode(
        "the host of the webhook's address is unknown",
        "a tunnel may have a new name by now: point the number again (`wsvoice run --number`)",
    ),
    "11215": ErrorCode("the webhook's address redirects too often", "let -x name the address that is redirected to"),
    "11216": ErrorCode("the webhook's address redirects to no usable one", "let -x name the final address"),
    "11217": ErrorCode("the webhook was answered with an error", _ANSWER),
    "11220": ErrorCode("no TLS connection came about to the webhook's address", _CERTIFICATE),
    "11235": ErrorCode("the certificate at the webhook's address is for another host", _CERTIFICATE),
    "11236": ErrorCode("the certificate at the webhook's address has expired", "renew the certificate"),
    "11237": ErrorCode("the certificate at the webhook's address comes without its chain", _CERTIFICATE),
    "11750": ErrorCode("the webhook's answer is larger than 64 kB", _FOREIGN),
    "11751": ErrorCode("the file of a picture message is too large", "it concerns a message, not a call"),
    # TwiML
    "12100": ErrorCode("the webhook's answer is not XML", _FOREIGN),
    "12200": ErrorCode("the webhook's TwiML breaks the schema", _OURS),
    "12300": ErrorCode("the webhook's answer has a content type that Twilio does not take", _FOREIGN),
    "12400": ErrorCode("Twilio failed inside", "try again; if it lasts, ask Twilio's support"),
    "13214": ErrorCode("<Dial> names a caller ID that the account may not use", _FROM),
    "13223": ErrorCode("<Dial> names no valid phone number", _E164),
    "13224": ErrorCode("<Dial> names a number that does not exist, or that Twilio does not reach", _E164),
    "13225": ErrorCode("<Dial> names a number that Twilio does not call", "transfer the call to another number"),
    "13227": ErrorCode("<Dial> goes to a country that the account may not call", f"allow the country: {_GEO}"),
    "13805": ErrorCode("a trial account's call has reached its ten minutes", _TRIAL, "trial"),
    "13810": ErrorCode("the call was turned away, though nobody was busy or hung up", "see how long it may ring"),
    "15003": ErrorCode("a status callback was not answered as it should be", _ANSWER),
    # Requests to the API
    "20003": ErrorCode(
        "the credentials are not the account's",
        "TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN belong together, and each region has a token of its own "
        "(TWILIO_REGION)",
        "credentials",
    ),
    "20005": ErrorCode("the account is not active", _INACTIVE, "permission"),
    "20006": ErrorCode("the credentials do not allow that", "use the Auth Token, or a Main API key", "permission"),
    "20008": ErrorCode(
        "test credentials reach no real numbers or calls", "use the live credentials of the account", "credentials"
    ),
    "20404": ErrorCode(
        "there is no such thing in this account",
        "what a sub-account owns is found with that sub-account's SID and token",
        "not-found",
    ),
    "20429": ErrorCode("too many requests at once", "wait a moment, then repeat", "rate-limit"),
    "20500": ErrorCode(
        "Twilio failed inside", "try again; https://status.twilio.com tells of its troubles", "unavailable"
    ),
    "20503": ErrorCode(
        "Twilio is not available", "try again; https://status.twilio.com tells of its troubles", "unavailable"
    ),
    "21201": ErrorCode("nobody is named to be called", _E164),
    "21205": ErrorCode(
        "the address for the call's document is not one that Twilio can ask",
        "give a public address, without an underscore in its host (`-x`, `--tunnel`)",
    ),
    "21210": ErrorCode("the number to call from is neither the account's nor verified", _FROM, "number"),
    "21211": ErrorCode("the number to call is not valid", _E164),
    "21212": ErrorCode("the number to call from is not valid", _FROM, "number"),
    "21213": ErrorCode("no number to call from is named", _FROM, "number"),
    "21214": ErrorCode("the number to call cannot be reached", "try another number"),
    "21215": ErrorCode(
        "the account may not call that country, or that kind of number", f"allow it: {_GEO}", "permission"
    ),
    "21216": ErrorCode("Twilio blocks calls to that number", "ask Twilio's support", "permission"),
    "21217": ErrorCode("the number to call does not appear to be valid", _E164),
    "21219": ErrorCode(
        "a trial account calls verified numbers only", f"verify the number: {_VERIFIED}, or upgrade", "trial"
    ),
    "21220": ErrorCode("the call is not in progress (any more)", "nothing is left to be done for it", "ended"),
    "21262": ErrorCode("machine detection has nowhere to report to", "AsyncAmdStatusCallback is missing"),
    "21609": ErrorCode("the address for status callbacks is not valid", "give a public address (`-x`, `--tunnel`)"),
    # Media Streams
    "31901": ErrorCode(
        "the stream's address did not answer",
        "see that `wsvoice run` is up, that the tunnel passes WebSockets, and that no firewall is in between",
    ),
    "31902": ErrorCode(
        "nothing listens at the stream's address", "see that `wsvoice run` is up, and that -x names its port"
    ),
    "31910": ErrorCode("no TLS connection came about to the stream's address", _CERTIFICATE),
    "31920": ErrorCode(
        "the stream's address answered, but not with a WebSocket",
        "look at what `wsvoice run` logged then: 403 is the token or the signature; if it logged nothing, the proxy or "
        "tunnel passes no WebSockets",
    ),
    "31921": ErrorCode(
        "the bot's end closed the stream",
        "look at what `wsvoice run` logged: the bot has failed or hung up; `wsvoice dial bot.py` tries it without "
        "a phone",
    ),
    "31922": ErrorCode("the stream's address is not wss://", _OURS),
    "31923": ErrorCode("the stream's address is no URL", _OURS),
    "31924": ErrorCode(
        "a WebSocket message from the bot's end broke the protocol", "see whether a proxy in between changes messages"
    ),
    "31930": ErrorCode(
        "the caller's audio was thrown away because it was not taken fast enough",
        "the network or the machine is too slow: `wsvoice dial --find-knee` finds how many calls it bears",
    ),
    "31931": ErrorCode(
        "the bot sent more than ten minutes of audio ahead, and the rest was thrown away",
        "let the bot send audio as it is spoken, as pipecat's transport does",
    ),
    "31941": ErrorCode("the stream asks for a track that <Connect> does not have", _OURS),
    "31951": ErrorCode(
        "the bot sent a message that Twilio does not know", "`wsvoice dial bot.py -t twilio` shows the message (M1)"
    ),
    # SIP, and the telephone network
    "32009": ErrorCode("who was dialled is not registered", _SIP),
    "32011": ErrorCode("the SIP server that was dialled gave no usable answer", _SIP),
    "32018": ErrorCode("the TwiML in a request is longer than 4000 characters", "transfer to a shorter address"),
    "32100": ErrorCode("a trial account calls verified numbers only", _TRIAL, "trial"),
    "32101": ErrorCode("the number that was dialled by SIP is not valid", _E164),
    "32205": ErrorCode("the account may not call that country", f"allow the country: {_GEO}", "permission"),
    "32214": ErrorCode("the SIP domain that was dialled belongs to another account", _SIP),
    "32219": ErrorCode("the SIP server redirected the call to where Twilio does not follow", _SIP),
    "32224": ErrorCode("Twilio may not connect calls to that country", "transfer the call within its country"),
    # Trials since 2026
    "573001": ErrorCode("a limit of trial accounts stands against the call", _TRIAL, "trial"),
    "573002": ErrorCode(
        "a trial account calls from the number that is assigned to whom it calls",
        "the console shows that number: let `--from` name it",
        "trial",
    ),
    "573003": ErrorCode("a limit of trial accounts stands against the call", _TRIAL, "trial"),
    "573004": ErrorCode("a limit of trial accounts stands against the call", _TRIAL, "trial"),
    "573005": ErrorCode(
        "the number to call has not been verified to the end", f"enter the code that it was sent: {_VERIFIED}", "trial"
    ),
}
