"""
Opening a media stream, as the provider does: the WebSocket's upgrade, and in words why it did not open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from wsvoice.call import Call
from wsvoice.dial.addresses import AddressPolicy, shortened, stream_address
from wsvoice.dial.target import Target
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import DialError, HttpError, LocalProtocolError
from wsvoice.http import failure_kind, is_loopback
from wsvoice.providers.base import Behaviour, Simulator, StreamRequest
from wsvoice.providers.events import Connected, StreamStarted
from wsvoice.providers.media_stream import Stream
from wsvoice.providers.urls import split_credentials

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

#: The largest message that a bot may send, in bytes: ten minutes of audio in base64.
MESSAGE_LIMIT = 16 * 1024 * 1024
#: How many messages are read ahead; a bot that sends more has to wait.
MESSAGES_QUEUED = 2


def unannounced_stream(
    provider: Simulator, behaviour: Behaviour, target: Target, url: str, parameters: Mapping[str, str]
) -> StreamRequest | None:
    """
    Return the stream of a call that no webhook announces; ``None`` if one does.

    Args:
        provider: The company that is played.
        behaviour: How it behaves.
        target: What was dialled.
        url: Its URL: the target's own, or that of the bot served for it.
        parameters: The parameters of the stream.
    """
    if target.kind != "stream" and provider.has_webhook:
        return None
    if target.kind != "stream":
        url = stream_address(url, provider.name)
    # Without an answer that names a format, it is the provider's default.
    usual = provider.stream()
    address, credentials = split_credentials(url)
    return StreamRequest(
        url=address,
        headers=credentials,
        parameters=parameters,
        format=behaviour.leg_format or usual.format,
        outbound_format=usual.outbound_format,
    )


def stream_start(call: Call, request: StreamRequest) -> StreamStarted:
    """Return the event with which the stream of `call` starts."""
    return StreamStarted(
        stream_id=call.stream_id,
        call_id=call.call_id,
        account_id=call.account_id,
        from_number=call.from_number,
        to_number=call.to_number,
        format=request.format,
        parameters=dict(request.parameters),
    )


def opening_messages(stream: Stream, started: StreamStarted) -> list[str | bytes]:
    """Return the messages that the carrier's end of a stream begins with, and start it."""
    messages = []
    # Only some providers say that they are connected.
    with suppress(LocalProtocolError):
        messages.append(stream.send(Connected()))
    return [*messages, stream.send(started)]


class StreamNotOpenError(DialError):
    """A stream that did not open; ``short`` says why without the hints that are in the message."""

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short


class StreamOpener:
    """
    Opens the streams of calls.

    Args:
        provider: The company that is played.
        target: What the user dialled, for hints.
        addresses: Where the server may send the caller.
        timeouts: How long to wait for the server.
    """

    def __init__(self, provider: Simulator, target: Target, addresses: AddressPolicy, timeouts: Timeouts) -> None:
        self._provider = provider
        self._target = target
        self._addresses = addresses
        self._timeouts = timeouts

    async def open(
        self, request: StreamRequest, connection_type: type[ClientConnection] | None = None
    ) -> tuple[ClientConnection, float]:
        """
        Return the connection, and how long it took to open, in milliseconds.

        Args:
            request: The stream.
            connection_type: What is made of the connection; websockets' own unless given.

        Raises:
            StreamNotOpenError: If it does not open, in words for the report.
            DialError: If its URL cannot be dialled.
        """
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException

        url = self._addresses.local(request.url)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                addresses = await self._addresses.addresses(url)
                candidates: Sequence[str | None] = [*addresses] or [None]
                for number, address in enumerate(candidates, 1):
                    try:
                        socket = await self._open_at(address, url, request, connection_type)
                        break
                    except OSError:
                        if number >= len(addresses):
                            raise
        except HttpError as error:
            raise self._no_stream(error.message, "refused", url) from error
        except InvalidStatus as error:
            raise self._upgrade_refused(error.response.status_code) from error
        except (InvalidURI, ValueError) as error:
            raise DialError(f"the stream's URL {url[:200]} cannot be dialled: {error}") from error
        except TimeoutError as error:
            message = f"the stream at {shortened(url)} did not open within {self._timeouts.connect_s:g} s"
            raise self._no_stream(message, "timeout", url) from error
        except (OSError, EOFError, WebSocketException) as error:
            raise self._not_connected(error, url) from error
        return socket, (time.monotonic() - began) * 1000

    async def _open_at(
        self, address: str | None, url: str, request: StreamRequest, connection_type: type[ClientConnection] | None
    ) -> ClientConnection:
        # Takes 50 ms to import, so a mistake on the command line is reported first.
        from websockets.asyncio.client import connect
        from websockets.typing import Subprotocol

        class Connect(connect):
            """Does not follow redirects, as providers do not."""

            def process_redirect(self, exc: Exception) -> Exception | str:
                return exc

        pinned: dict[str, Any] = {"host": address} if address else {}
        signed = self._provider.upgrade_headers(request.url, now=time.time())
        return await Connect(
            url,
            additional_headers={**signed, **request.headers},
            subprotocols=[Subprotocol(self._provider.subprotocol)] if self._provider.subprotocol else None,
            # The provider's own User-Agent is among the headers.
            user_agent_header=None,
            compression=None,
            proxy=None if address or is_loopback(urlsplit(url).hostname or "") else True,
            # The timeout of all addresses together is the caller's.
            open_timeout=None,
            close_timeout=self._timeouts.close_s,
            ping_interval=None,
            max_size=MESSAGE_LIMIT,
            max_queue=MESSAGES_QUEUED,
            create_connection=connection_type,
            **pinned,
        )

    def _upgrade_refused(self, status: int) -> StreamNotOpenError:
        why = {
            401: " (it wants credentials)",
            403: " (the stream token is missing, used or too old, or the signature does not match)",
            404: " (there is no stream at this path)",
            426: " (there is no WebSocket at this path)",
            503: " (every place is taken, or the server is stopping)",
        }.get(status, "")
        short = f"the stream was refused: {status}"
        hint = ""
        if not self._provider.has_webhook:
            if status in (401, 403):
                names = " and ".join(self._provider.credential_names)
                why = f" (the password is wrong, or missing) - set {names} as the server has them"
        elif self._target.kind == "stream" and status in (401, 403, 404, 426):
            # Only the webhook's answer has the stream's token.
            parts = urlsplit(self._target.value)
            webhook = parts._replace(scheme=parts.scheme.replace("ws", "http"), path="/", query="").geturl()
            hint = f" - dial the webhook instead: `wsvoice dial {webhook}`"
        text = f"{short} to the WebSocket's upgrade{why}"
        return self._no_stream(text, "refused", hint=hint, short=short)

    def _not_connected(self, error: Exception, url: str) -> StreamNotOpenError:
        host = urlsplit(url).hostname or url
        kind = failure_kind(error)
        if kind == "refused":
            return self._no_stream(f"nothing listens for streams at {shortened(url)}", "refused", url)
        if kind == "dns":
            return self._no_stream(f"the stream's host {host} is unknown", "refused", url)
        reason = (str(error) or type(error).__name__)[:200]
        if url.startswith("wss://"):
            hint = "; is it a plain ws:// server? dial with --force-ws" if is_loopback(host) else ""
            return self._no_stream(f"no TLS connection to {host} for the stream: {reason}{hint}", "tls", url)
        return self._no_stream(f"the stream at {shortened(url)} did not open: {reason}", "refused", url)

    def _dial_hint(self, url: str) -> str:
        """
        Return a hint for a server that was dialled by a local name and names a stream elsewhere.

        A server on this machine names its public host. Behind a proxy or in a container it does not know that its
        caller is on this machine.
        """
        dialled, stream = urlsplit(self._target.value), urlsplit(url)
        if self._target.kind != "webhook" or self._addresses.override is not None or not stream.hostname:
            return ""
        if not is_loopback(dialled.hostname or "") or is_loopback(stream.hostname):
            return ""
        public = f"https://{stream.netloc.rpartition('@')[2]}{dialled.path or '/'}"
        return f" - dial the public address, `wsvoice dial {public}`, or dial on the machine where the server runs"

    def _no_stream(
        self,
        message: str,
        kind: Literal["timeout", "tls", "refused"],
        url: str = "",
        *,
        hint: str = "",
        short: str = "",
    ) -> StreamNotOpenError:
        """Return the error for a stream that did not open; `short` is what it says without hints."""
        if code := self._provider.upgrade_error(kind):
            message = f"{message}; {self._provider.title} reports this as error {code}"
        message += hint or self._dial_hint(url)
        return StreamNotOpenError(message, short or message)
