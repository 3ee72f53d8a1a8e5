"""
A company's REST API as the owner of an account uses it: numbers pointed at a server, calls placed, ended, looked up.

Like the rest of this package it is pure. An operation is a generator of requests, *steps*, which is sent the response
to each of them; :mod:`wsvoice.phone.client` has the network and carries steps out. So an operation of several requests
reads from top to bottom, and a test needs no server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from wsvoice.call import AnsweredBy, Call, Control, Stage
from wsvoice.errors import ApiError, ConfigError, RemoteProtocolError
from wsvoice.providers.base import Company, HttpRequest
from wsvoice.providers.fields import listed, read_object, shown
from wsvoice.providers.urls import is_web_address

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """
    What the API answered, whatever its status.

    Attributes:
        headers: Header values by lower-case name.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def content(self) -> dict[str, Any]:
        """Return the JSON object that is its body; empty if it is none."""
        try:
            return read_object(self.body.decode("utf-8", "replace"))
        except RemoteProtocolError:
            return {}


#: An operation: it yields requests, is sent the response to each, and returns its result.
Steps: TypeAlias = Generator[HttpRequest, ApiResponse, ResultT]


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """
    The account that the credentials belong to.

    Attributes:
        account_id: Its id.
        name: As its owner calls it.
        is_trial: Whether it is a trial account; ``None`` where the API does not say.
        limits: What it cannot do, one line each, such as the limits of a trial account.
    """

    account_id: str
    name: str = ""
    is_trial: bool | None = None
    limits: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """
    A number of the account's.

    Attributes:
        number: In E.164, with its plus.
        number_id: The API's id of it, where that is not the number.
        name: As its owner calls it.
        has_voice: Whether it takes calls.
        points_at: Where its calls go now: a URL, or words such as ``application 'Support'``; empty for nowhere.
        settings: What :meth:`Account.point` would change, as it is now.
        obstacle: Why it cannot be pointed, in one line; empty if it can.
        hint: What would mend that.
        warnings: What to know before it is pointed, such as that other numbers share its application.
        shares: What else is changed with it, and with other numbers too, such as ``application 1234``: two runs that
            change it would undo each other's work. Empty for nothing.
    """

    number: str
    number_id: str = ""
    name: str = ""
    has_voice: bool = True
    points_at: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    obstacle: str = ""
    hint: str = ""
    warnings: Sequence[str] = ()
    shares: str = ""


@dataclass(frozen=True, slots=True)
class ServerAddresses:
    """
    Where a company reaches a server.

    Attributes:
        webhook: Where a call is announced, and the document asked for.
        status: Where reports on calls go; never :attr:`webhook`.
    """

    webhook: str
    status: str = ""


#: What is saved of a number before it is changed: enough to put it back, in a later process too.
Saved: TypeAlias = Mapping[str, str]
#: What became of putting a number back: it was, it had been already, or somebody else has changed it since and it was
#: left alone.
Restored = Literal["restored", "unchanged", "left"]
#: What is found out about who answers an outbound call: nothing, human or machine, or also when a machine's greeting
#: ends.
Detection = Literal["off", "detect", "greeting-end"]


@dataclass(frozen=True, slots=True)
class OutboundCall:
    """
    A call to be placed.

    Attributes:
        to_number, from_number: In E.164.
        webhook_url: Where the company asks for the document once the call is answered.
        stream_url: The stream, for companies that are told it at once; with a token that lets it in.
        status_url: Where the call's status is reported.
        machine_url: Where is reported who answered, if that is detected while the call goes on.
        detection: What is detected.
        ring_timeout_s: How long it may ring.
        time_limit_s: How long it may last; ``None`` for the company's own limit.
        parameters: For the bot.
    """

    to_number: str
    from_number: str
    webhook_url: str
    stream_url: str
    status_url: str
    machine_url: str
    detection: Detection = "off"
    ring_timeout_s: int = 60
    time_limit_s: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """
    A call that the company has taken.

    Attributes:
        call_id: Its id; empty where the company names it only in its reports (TeXML, Plivo).
        request_id: What it is known by until then, for :meth:`Account.cancel`.
        account_id: The account that owns it.
        stage: How far it is.
        control: As of the :class:`~wsvoice.call.Call`: a call that is controlled by requests does not end with its
            stream.
    """

    call_id: str
    request_id: str = ""
    account_id: str = ""
    stage: Stage = "queued"
    control: Control = "document"


@dataclass(frozen=True, slots=True)
class CallState:
    """
    How a call stands, or how it ended.

    Attributes:
        duration_s: How long it has lasted; ``None`` where the API does not say.
        price: What it cost, with its currency, such as ``0.0130 USD``; empty where the API does not say.
        cause: Why it ended, in the company's words and codes.
    """

    call_id: str
    stage: Stage
    answered_by: AnsweredBy | None = None
    duration_s: float | None = None
    price: str = ""
    cause: str = ""
    from_number: str = ""
    to_number: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    One thing that the company recorded of a call.

    Attributes:
        when: The company's own time stamp, as it is written.
        what: What happened, in one line.
        code: The company's error code, if it is an error.
        failed: Whether it explains why a call went wrong.
        hint: What would mend it.
    """

    what: str
    when: str = ""
    code: str = ""
    failed: bool = False
    hint: str = ""


def refused_kind(status: int) -> str:
    """Return the kind of the error for a status that says nothing in particular: its own trouble is no refusal."""
    return "unavailable" if status >= 500 else "refused"


class Account(Company):
    """
    A company's REST API; by itself it has none.

    Every operation raises :exc:`~wsvoice.errors.ApiError` if the company refuses it, with a hint that mends it.
    """

    #: The credentials without which nothing can be asked, by environment variable name.
    needed: ClassVar[tuple[str, ...]] = ()
    #: Where the user finds them, in the company's own words.
    credentials_place: ClassVar[str] = ""
    #: Whether it has operations for numbers, and for calls.
    has_numbers: ClassVar[bool] = False
    has_calls: ClassVar[bool] = False
    #: How calls are placed where it has no operations for them, as a hint.
    calls_instead: ClassVar[str] = ""
    #: Where this server answers with :meth:`~wsvoice.providers.base.Server.transfer_document`, for a company whose API
    #: takes the address of a document and not the document; set by who serves it.
    transfer_url: str = ""

    def check_credentials(self, *names: str) -> None:
        """
        Raise :exc:`~wsvoice.errors.ConfigError` if nothing can be asked: a credential is missing, or no address.

        Args:
            names: As of :meth:`missing_credentials`.
        """
        if missing := self.missing_credentials(*names):
            raise ConfigError(
                f"{self.title}'s API needs {listed(missing)}",
                hint=f"set {'it' if len(missing) == 1 else 'them'} in the environment or in .env: "
                f"{self.credentials_place}",
            )
        for name in self.credential_names:
            # Where another address of the API may be set, such as TWILIO_API_BASE_URL.
            if name.endswith("_BASE_URL") and (written := self.credential(name)) and not is_web_address(written):
                hint = "it starts with https://, as in https://api.example.com; leave it out for the company's own"
                raise ConfigError(f"{name} is not a URL: {shown(written)}", hint=hint)

    def missing_credentials(self, *names: str) -> list[str]:
        """
        Return which credentials are not set.

        Args:
            names: The ones that an operation needs; those that all need, if none are named.
        """
        return [name for name in names or self.needed if not self.credential(name)]

    def read(self, response: ApiResponse, what: str) -> dict[str, Any]:
        """
        Return what a successful response says; empty if it has no body.

        Args:
            what: What was asked for, as the start of a sentence, such as ``the call to +1555...``.

        Raises:
            ApiError: If it is not successful.
        """
        if 200 <= response.status < 300:
            return response.content()
        raise self.refusal(response, what)

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        """Return the error for a response that is no success."""
        title = self.title
        if response.status in (401, 403):
            return ApiError("credentials", f"{title} does not take the credentials ({response.status})")
        if response.status == 429:
            return ApiError("rate-limit", f"{title} asks for fewer requests (429)", hint="wait a minute, then repeat")
        body = shown(response.body[:200].decode("utf-8", "replace"))
        return ApiError(refused_kind(response.status), f"{title} refuses {what}: {response.status} {body}")

    def describe(self) -> Steps[AccountInfo]:
        """Return the account that the credentials belong to, by one cheap request."""
        raise self._lacks("tells nothing about the account")
        yield

    # Numbers

    def numbers(self) -> Steps[list[PhoneNumber]]:
        """Return every number of the account's."""
        raise self._lacks("knows no numbers")
        yield

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        """Return the account's `number`, in E.164; an error of kind ``number`` is raised if it is not the account's."""
        raise self._lacks("knows no numbers")
        yield

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        """
        Let the calls of `number` come to `addresses`.

        Args:
            save: Called before each change, with what :meth:`restore` needs to take back all changes up to this one.
                It returns once that is on disk.
        """
        raise self._lacks("cannot point a number")
        yield

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        """
        Put a number back as it was saved, and remove what was made for it.

        A number that no longer points at `addresses` is somebody else's change, and is left alone.
        """
        raise self._lacks("cannot point a number")
        yield

    def how_to_point(self, number: str, addresses: ServerAddresses) -> list[str]:
        """Return what the user has to click, where the API cannot point a number."""
        return []

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """Place a call."""
        raise self._lacks("places no calls")
        yield

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        """End a call that we placed, whether it rings or was answered; true unless it had ended by itself."""
        raise self._lacks("ends no calls")
        yield

    def look_up(self, call_id: str) -> Steps[CallState]:
        """Return how a call stands; an error of kind ``not-found`` is raised if there is none."""
        raise self._lacks("knows no calls")
        yield

    def hang_up(self, call: Call) -> Steps[bool]:
        """End a call; true unless it had ended by itself."""
        raise self._lacks("ends no calls")
        yield

    def transfer(self, call: Call, to: str) -> Steps[None]:
        """Connect the caller to `to`, a number or a SIP address, instead of the bot, whose stream then ends."""
        raise self._lacks("transfers no calls")
        yield

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        """Press `digits`, of ``0-9 A-D * # w W``; a ``w`` waits for half a second, a ``W`` for a second."""
        raise self._lacks("presses no keys")
        yield

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """Return what the company recorded of a call, oldest first."""
        raise self._lacks("records nothing that can be read")
        yield

    def explain_code(self, code: str) -> tuple[str, str] | None:
        """Return what one of the company's error codes means, and what mends it; ``None`` for an unknown one."""
        return None

    def _lacks(self, what: str) -> ApiError:
        return ApiError("unsupported", f"{self.title}'s API {what}")
