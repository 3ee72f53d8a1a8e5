"""
Every exception of wsvoice.

::

    WsvoiceError                 exit code 1
    ├── UsageError               exit code 2: the command line, a setting or a file named in it is wrong
    │   ├── ConfigError          a setting has a value that cannot be used
    │   ├── BotNotFoundError     there is no such bot, or it is not a bot
    │   ├── AudioFileError       an audio file cannot be read
    │   ├── TraceError           a trace cannot be read, or is not to be trusted
    │   └── ScenarioError        a scenario's file cannot be used
    ├── BotImportError           the bot's own code failed while it was imported
    ├── BotError                 the bot's own code failed while it ran
    ├── ServerError              the server could not be started
    │   └── PortInUseError       a port is somebody else's
    ├── ControlError             a running server could not be asked for its calls
    ├── ConnectError             the server that a bot dials could not be reached, turned it away, or failed
    ├── DialError                a test call could not be placed
    ├── ScaffoldError            a project could not be written
    ├── HttpError                an HTTP request got no response
    ├── ApiError                 a provider's REST API refused a request, or could not be reached
    ├── NumberError              a phone number could not be pointed at a server, or put back
    ├── SignatureError           a request is not signed by the provider
    ├── TokenError               a stream token is missing, forged, expired or used
    └── ProtocolError
        ├── RemoteProtocolError  the other end broke the provider's protocol
        └── LocalProtocolError   we were about to break it

``hint`` is one line that says what to do about it. Library code raises; only the command line prints, and maps
``exit_code`` to the process's exit code.
"""

from __future__ import annotations


class WsvoiceError(Exception):
    """Base of all errors that wsvoice raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(WsvoiceError):
    """The command line, a setting or a file named in it is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting has a value that cannot be used."""


class BotNotFoundError(UsageError):
    """There is no such bot, or it is not a bot."""


class AudioFileError(UsageError):
    """An audio file cannot be read."""


class TraceError(UsageError):
    """A trace cannot be read, or is not to be trusted."""


class ScenarioError(UsageError):
    """A scenario's file cannot be used; the message begins with the file and the line."""


class BotImportError(WsvoiceError):
    """
    The bot's own code failed while it was imported.

    ``details`` is the bot's traceback, without the frames of wsvoice and importlib.
    """

    def __init__(self, message: str, *, details: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.details = details


class BotError(WsvoiceError):
    """The bot's own code failed while it ran."""


class ServerError(WsvoiceError):
    """The server could not be started."""


class PortInUseError(ServerError):
    """
    Another program listens on the port.

    Attributes:
        port: It.
        instead: The option with another port, as in ``--port 7861``.
    """

    def __init__(self, message: str, *, port: int, instead: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or f"another program may be using it; try {instead}")
        self.port = port
        self.instead = instead


class ControlError(WsvoiceError):
    """A server that runs on this machine could not be asked for its calls."""


class ConnectError(WsvoiceError):
    """The server that a bot dials could not be reached, turned it away, or failed."""


class DialError(WsvoiceError):
    """A test call could not be placed."""


class ScaffoldError(WsvoiceError):
    """A new project could not be written; nothing was left behind."""


class HttpError(WsvoiceError):
    """
    An HTTP request got no response.

    ``kind`` is ``refused``, ``connect`` (no connection in time), ``timeout`` (no answer in time), ``tls``,
    ``dns``, ``url``, ``address`` (one that is not allowed) or ``other``.
    """

    def __init__(self, kind: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class ApiError(WsvoiceError):
    """
    A provider's REST API refused a request, or could not be reached.

    ``kind`` is ``credentials``, ``not-found``, ``number`` (not the account's, or without voice), ``trial`` (a limit of
    trial accounts), ``balance``, ``permission``, ``rate-limit``, ``ended`` (the call is over), ``unreachable``,
    ``unavailable`` (the API answers, and has a trouble of its own: 5xx), ``unsupported`` (the company has no such
    thing), ``withdrawn`` and ``uncertain`` (a call that is not wanted any more, or may have been placed) or
    ``refused``. ``code`` is the company's own error code. ``retry_after_s`` is for how long the company wants to be
    left alone, in seconds; ``None`` where it does not say.
    """

    def __init__(self, kind: str, message: str, *, code: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.code = code
        self.retry_after_s: float | None = None

    @property
    def may_pass(self) -> bool:
        """Whether the same request may well succeed a little later."""
        return self.kind in ("unreachable", "unavailable", "rate-limit")


class NumberError(WsvoiceError):
    """A phone number could not be pointed at a server, or put back."""


class SignatureError(WsvoiceError):
    """A request does not carry the provider's signature."""


class TokenError(WsvoiceError):
    """A stream token is missing, forged, expired, or was used before."""


class ProtocolError(WsvoiceError):
    """A message breaks the provider's protocol; ``kind`` says how, and groups like errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RemoteProtocolError(ProtocolError):
    """The other end sent something that the provider's protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """We were about to send something that the provider's protocol does not allow."""
