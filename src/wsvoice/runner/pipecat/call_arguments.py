"""What a bot is called with, and what ``create_transport`` returns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import pipecat.runner.utils
from loguru import logger
from pipecat.runner.types import CallData, WebSocketRunnerArguments
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.base_transport import TransportParams as BaseParams
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams

from wsvoice.runner.live_call import LiveCall
from wsvoice.runner.pipecat import is_supported
from wsvoice.runner.pipecat.call_transport import CallTransport

if TYPE_CHECKING:
    from wsvoice.runner.media_socket import MediaSocket
    from wsvoice.runner.session import Session

TransportParams = Mapping[str, Callable[[], Any]]
ParamsT = TypeVar("ParamsT", bound=BaseParams)
TransportT = TypeVar("TransportT", bound=BaseTransport)

_pipecat_create_transport = pipecat.runner.utils.create_transport


class ReadyTransport(Generic[ParamsT, TransportT]):
    """
    What a bot's arguments have for every kind of transport: a ready-made one, built on first use.

    Attributes:
        params_kind: The class of its params.
        params_names: Under which names ``create_transport`` looks for the bot's params; the first one decides.
        default_params: What its params are without the bot's own.
        converts_params: Whether it takes the params of other transports too, so that one entry suffices for all.
    """

    params_kind: type[ParamsT]
    params_names: tuple[str, ...]
    default_params: ClassVar[dict[str, Any]] = {"audio_in_enabled": True, "audio_out_enabled": True}
    converts_params = True
    _transport: TransportT | None = None

    @property
    def transport(self) -> TransportT:
        """The ready-made transport; by default with audio both ways."""
        if self._transport is None:
            return self.use_transport(self.params_kind(**self.default_params))
        return self._transport

    def use_transport(self, params: ParamsT) -> TransportT:
        """Build the transport with the bot's own params."""
        if self._transport is not None:
            logger.debug("the transport is built a second time; the first is left unused")
        self._transport = self._make_transport(params)
        return self._transport

    def _make_transport(self, params: ParamsT) -> TransportT:
        raise NotImplementedError

    def pick_params(self, transport_params: TransportParams) -> ParamsT:
        """
        Return the bot's params for this kind of transport.

        Raises:
            ValueError: If there are none, or they are not such params.
        """
        kind, wanted = self.params_kind, self.params_names[0]
        name = next((each for each in self.params_names if transport_params.get(each) is not None), None)
        if name is None:
            known = ", ".join(sorted(transport_params)) or "nothing"
            raise ValueError(
                f'transport_params has no "{wanted}" (it has {known}); '
                f'add "{wanted}": lambda: {kind.__name__}(audio_in_enabled=True, audio_out_enabled=True)'
            )
        params = transport_params[name]()
        if isinstance(params, kind):
            return params
        if self.converts_params and isinstance(params, BaseParams):
            common = params.model_fields_set & kind.model_fields.keys()
            return kind(**{field: getattr(params, field) for field in common})
        raise ValueError(f'transport_params["{name}"] makes a {type(params).__name__}; a {kind.__name__} is needed')


@dataclass
class CallArguments(ReadyTransport[FastAPIWebsocketParams, CallTransport], WebSocketRunnerArguments):
    """
    A bot's argument for a call.

    It is a ``WebSocketRunnerArguments``, so bots for pipecat's runner work unchanged.

    Attributes:
        call: The call: ids, numbers, direction, parameters; who answered; and hanging up, transferring and pressing
            keys.
        transport: The ready-made :class:`CallTransport`, built on first use.
    """

    params_kind = FastAPIWebsocketParams
    converts_params = False

    call: LiveCall = field(kw_only=True)

    @property
    def params_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The provider's name."""
        return (self.call.provider,)

    def _make_transport(self, params: FastAPIWebsocketParams) -> CallTransport:
        return CallTransport(cast(Any, self.websocket), params, self.call)


async def create_transport(runner_args: Any, transport_params: TransportParams) -> BaseTransport:
    """
    Return the ready-made transport of a call, with the bot's params for its provider.

    While a bot is served it replaces ``pipecat.runner.utils.create_transport``, to which it passes arguments that are
    not from wsvoice.

    Raises:
        ValueError: If `transport_params` has no entry for the call's provider.
    """
    if isinstance(runner_args, ReadyTransport):
        transport: BaseTransport = runner_args.use_transport(runner_args.pick_params(transport_params))
        return transport
    return await _pipecat_create_transport(runner_args, dict(transport_params))


async def call_arguments(session: Session, handshake: list[str]) -> CallArguments:
    """Build a bot's arguments from the messages of the handshake, as pipecat's runner would."""
    call, socket = session.call, session.socket
    # pipecat's parser reads two messages; some providers send one before their audio, others may send more.
    messages = [*handshake, ""] if len(handshake) == 1 else handshake[-2:]
    if session.provider.known_to_pipecat:
        messages = [_without_nulls(each) for each in messages]
    call_data = CallData(stream_id=call.stream_id, call_id=call.call_id)
    try:
        if session.provider.known_to_pipecat:
            transport_type, parsed = await parse_telephony_websocket(cast(Any, _Replay(messages)))
            if transport_type != "unknown":
                call_data = parsed if isinstance(parsed, CallData) else CallData.model_validate(parsed)
    except (ValueError, TypeError, AttributeError) as error:
        # It trusts the type of every field; our own reader has found the ones that matter.
        session.logger.warning("pipecat cannot read the start message: {}", type(error).__name__)
    if not call_data.from_number:
        call_data.from_number = call.from_number or None
    if not call_data.to_number:
        call_data.to_number = call.to_number or None
    call_data.body = {**call.parameters, **call_data.body}
    if is_supported("parsed-handshake"):
        # pipecat caches the result here, so a later parse_telephony_websocket() in the bot returns the same.
        setattr(socket, "_pipecat_parsed_telephony", (call.provider, call_data))  # noqa: B010
    else:
        setattr(socket, "iter_text", _Replay(messages, socket).iter_text)  # noqa: B010
    arguments = CallArguments(
        websocket=cast(Any, socket),
        transport_type=call.provider,
        call=LiveCall.of(call, session.line),
        call_data=call_data,
        body=dict(call.parameters),
        session_id=call.call_id,
    )
    arguments.handle_sigint = False
    arguments.handle_sigterm = False
    return arguments


def _without_nulls(message: str) -> str:
    """Return a start message without null fields, for which pipecat's parser has defaults."""
    content = json.loads(message) if message else {}
    start = content.get("start")
    if not isinstance(start, dict) or None not in start.values():
        return message
    return json.dumps({**content, "start": {name: value for name, value in start.items() if value is not None}})


class _Replay:
    """Messages that were already read, as pipecat's parser reads them, followed by those of `socket`."""

    def __init__(self, messages: list[str], socket: MediaSocket | None = None) -> None:
        self._messages = messages
        self._following = socket.iter_text() if socket is not None else None

    async def iter_text(self) -> AsyncIterator[str]:
        for message in self._messages:
            yield message
        if self._following is not None:
            async for message in self._following:
                yield message
