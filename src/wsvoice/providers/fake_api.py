"""A company's REST API as a bot meets it in a test call: what a request asks for, and what is answered."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from wsvoice.call import Call
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, CallStatus, Command, Company, StreamRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fields import DIGITS, broken, read_basic, shown, write_object
from wsvoice.providers.signing import is_same
from wsvoice.providers.urls import read_callback


class FakeApi:
    """
    What a company's REST API says to a bot in a test call; by itself it takes Basic credentials, and knows nothing yet.

    Args:
        company: With the credentials that the bot was given.
    """

    #: The credentials that a request may carry: names of the user, and of the secret.
    users: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: What else the account has, beside calls in progress; ``None`` where that is not simulated.
    account_type: ClassVar[type[FakeAccount] | None] = None

    def __init__(self, company: Company) -> None:
        self.company = company

    def is_authorised(self, request: WebhookRequest) -> bool:
        """Whether a request carries the bot's credentials; true where none are known."""
        credential = self.company.credential
        accepted = [(credential(user), secret) for user, name in self.users if (secret := credential(name))]
        given, password = read_basic(request.headers.get("authorization", ""))
        return not accepted or any(is_same(secret, password) and user in ("", given) for user, secret in accepted)

    def read_command(self, request: WebhookRequest) -> Command | None:
        """
        Read a request; ``None`` if it is none that a call in progress can be told.

        Raises:
            RemoteProtocolError: If it lacks what it needs.
        """
        raise NotImplementedError

    def read_answer_request(self, request: WebhookRequest, *, call_id: str = "") -> StreamRequest | None:
        """
        Read the stream that a request answers a call with, instead of a document; ``None`` if it is another request.

        Args:
            request: As the API gets it.
            call_id: The one call that there is to answer; empty for any.

        Raises:
            RemoteProtocolError: If the provider could not open a stream from it.
        """
        return None

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        """Render the answer to a command that is carried out, after which `call` is in that status."""
        raise NotImplementedError

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """Render an error."""
        return json_answer({"error": message}, status)


def json_answer(content: dict[str, Any], status: int = 200) -> Answer:
    """Return an answer of the API's."""
    return Answer(write_object(content), "application/json", status)


def read_fields(request: WebhookRequest) -> dict[str, str]:
    """Return the texts of a request's body: a form, or a JSON object, which what says that it is JSON has to be."""
    if not request.is_json:
        return dict(request.form)
    return {name: value for name, value in request.read_json().items() if isinstance(value, str)}


def read_digits(written: str) -> str:
    """Return the keys that a request asks to press; ``w`` and ``W`` wait. Anything else is a ``bad-command``."""
    if not written or not (DIGITS | frozenset("wW")).issuperset(written):
        raise broken("bad-command", f"digits is {shown(written)}, not of 0-9 A-D * # w W")
    return written


def read_update(call_id: str, url: str | None, method: str | None, what: str, missing: str) -> Command:
    """
    Return the command that gives a call the document at `url`, which the request names as `what`.

    Raises:
        RemoteProtocolError: Of kind ``bad-command``; it says what is `missing` where there is no URL.
    """
    try:
        callback = read_callback(url, method, "", what)
    except RemoteProtocolError as error:
        raise broken("bad-command", error.message) from None
    if callback is None:
        raise broken("bad-command", missing)
    return Command("update", call_id, callback=callback)


def read_call_command(request: WebhookRequest, call_id: str, document: str) -> Command:
    """
    Read what a GET or a POST asks of a call resource, of Twilio's or of those who repeat it.

    Its field `document` holds a document.

    Raises:
        RemoteProtocolError: Of kind ``bad-command``.
    """
    if request.method == "GET":
        return Command("look-up", call_id)
    fields = read_fields(request)
    if fields.get("Status") in ("completed", "canceled"):
        return Command("hang-up", call_id)
    if written := fields.get(document):
        return Command("update", call_id, document=written.encode("utf-8", "surrogatepass"))
    missing = f"none of Status, Url and {document} says what becomes of the call"
    return read_update(call_id, fields.get("Url"), fields.get("Method"), "Url", missing)
