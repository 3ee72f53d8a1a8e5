"""The server's half of Asterisk: who may come in, and what the user writes into Asterisk's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.errors import ConfigError
from wsvoice.providers.asterisk.company import AsteriskCompany
from wsvoice.providers.asterisk.stream import AsteriskMirror, AsteriskStream
from wsvoice.providers.base import Server, WebhookRequest
from wsvoice.providers.signing import has_password

_CLIENT = """
; /etc/asterisk/websocket_client.conf
[wsvoice]
type = websocket_client
connection_type = per_call_config
"""
_EXTENSION = """
; /etc/asterisk/extensions.conf: `telephones` is the context of your telephones
[telephones]
exten => 100,1,Set(_FROM=${CALLERID(num)})
 same => n,Set(_TO=${EXTEN})
 same => n,Dial(WebSocket/wsvoice/c(ulaw)f(json))
 same => n,Hangup()

; then: sudo asterisk -rx 'module reload res_websocket_client.so'; sudo asterisk -rx 'dialplan reload'
"""


class AsteriskServer(AsteriskCompany, Server):
    """What ``wsvoice run -t asterisk`` knows of Asterisk. Closing the stream hangs up."""

    stream_type = AsteriskStream
    mirror_type = AsteriskMirror
    known_to_pipecat: ClassVar[bool] = False
    no_busy_message: ClassVar[str] = (
        "it asks for no document, and its dialplan goes on behind Dial() where the stream is refused; "
        "have a Playback() there"
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        for name, value in self.credentials.items():
            if not value.isprintable():
                hint = "a line of Asterisk's files could not hold them: choose another"
                raise ConfigError(f"{name} has control characters", hint=hint)

    def claims(self, message: object) -> bool:
        """Whether a message is Asterisk's start, as JSON or in words."""
        if isinstance(message, Mapping):
            return message.get("event") == "MEDIA_START"
        return isinstance(message, str) and message.startswith("MEDIA_START ")

    def has_credentials(self, request: WebhookRequest) -> bool:
        """
        Whether an upgrade carries the user name and password of ``websocket_client.conf``.

        Asterisk sends them with its first request, without being asked.
        """
        password = self.credential("ASTERISK_PASSWORD")
        return bool(password) and has_password(request.headers.get("authorization", ""), self.username, password)

    def setup_lines(self, stream_url: str) -> list[str]:
        """Return the lines of Asterisk's files that lead an extension to `stream_url`."""
        password = self.credential("ASTERISK_PASSWORD")
        settings = {"uri": stream_url, "protocols": "media"}
        settings |= {"username": self.username, "password": password} if password else {}
        settings |= {"tls_enabled": "yes"} if stream_url.startswith("wss:") else {}
        # A semicolon would begin a comment.
        lines = [f"{name} = {value}".replace(";", "\\;") for name, value in settings.items()]
        return [*_CLIENT.splitlines(), *lines, *_EXTENSION.splitlines()]
