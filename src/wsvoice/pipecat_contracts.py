"""
What wsvoice relies on in pipecat beyond its documented API, so that an untested pipecat breaks no call.

Each :class:`Feature` lists its contracts. With a version of :data:`TESTED` nothing is checked. Any other version is
checked once, when pipecat is first needed: the compiled code of its modules is read without importing them. A feature
whose contracts do not all hold is switched off, and one warning says what is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from inspect import unwrap
from operator import attrgetter
from pathlib import Path
from types import CodeType

from wsvoice.errors import ConfigError

#: The minor versions of pipecat with which all tests have passed.
TESTED = ("1.14",)


@dataclass(frozen=True, slots=True)
class Contract:
    """
    Something that wsvoice relies on and pipecat does not promise.

    Attributes:
        place: ``module:Class.function``, or a module's name and a colon.
        names: What its code must contain: attributes that it sets, functions that it calls, messages.
        parameters: The parameters that it must have; ``None`` if it is not a function, or they do not matter.
        exactly: Whether it may have no others, because a function of ours replaces it.
    """

    place: str
    names: tuple[str, ...] = ()
    parameters: tuple[str, ...] | None = None
    exactly: bool = False

    def holds(self) -> bool:
        """Whether pipecat's compiled code keeps the contract."""
        code = _code(self.place)
        if code is None:
            return False
        if self.parameters is not None:
            taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if taken != self.parameters if self.exactly else not set(self.parameters) <= set(taken):
                return False
        mentioned = frozenset(_names(code))
        return all(
            name in mentioned or (" " in name and any(each.startswith(name) for each in mentioned))
            for name in self.names
        )


def uses(place: str, *names: str) -> Contract:
    """Return the contract that a place contains these names."""
    return Contract(place, names)


def calls(place: str, *parameters: str) -> Contract:
    """Return the contract that a function can be called with these parameters."""
    return Contract(place, parameters=parameters)


def replaces(place: str, *parameters: str) -> Contract:
    """Return the contract that a function of ours with these parameters can replace this one."""
    return Contract(place, parameters=parameters, exactly=True)


@dataclass(frozen=True, slots=True)
class Feature:
    """
    A feature that needs more of pipecat than its documented API.

    Attributes:
        name: Its name in the warning, and of its patch if it has one.
        lost: What is lost without it.
        contracts: What it relies on.
        required: Whether nothing works without it.
    """

    name: str
    lost: str
    contracts: tuple[Contract, ...]
    required: bool = False


def feature(name: str, lost: str, *contracts: Contract, required: bool = False) -> Feature:
    return Feature(name, lost, contracts, required)


_BASE = "pipecat.utils.base_object:BaseObject"
_PROCESSOR = "pipecat.processors.frame_processor:FrameProcessor"
_INPUT = "pipecat.transports.base_input:BaseInputTransport"
_OUTPUT = "pipecat.transports.base_output:BaseOutputTransport"
_FASTAPI = "pipecat.transports.websocket.fastapi:FastAPIWebsocket"
_SERVER = "pipecat.transports.websocket.server:SingleClientWebsocketServer"
_FRAMES = "pipecat.frames.frames:"
_SILERO = "pipecat.audio.vad.silero:"
_WORKER_OBSERVER = "pipecat.pipeline.worker_observer:WorkerObserver"
_COLLECTED = ("_collect_job_handlers", "_collect_worker_ready_handlers")
_SMART_TURN = "pipecat.audio.turn.smart_turn.local_smart_turn_v3:"
_TURN_ANALYZER = "pipecat.audio.turn.base_turn_analyzer:"
_VAD_CONTROLLER = "pipecat.audio.vad.vad_controller:VADController"
_CLIENT = "pipecat.transports.websocket.client:WebsocketClient"
_EVENTS = (calls(f"{_BASE}._register_event_handler", "event_name"), calls(f"{_BASE}._call_event_handler", "event_name"))
_HANDLERS = (
    uses(f"{_BASE}.__init__", "_event_handlers"),
    uses("pipecat.utils.base_object:EventHandler", "handlers"),
    uses(f"{_FRAMES}CancelWorkerFrame", "reason"),
)
_RECEIVED = (
    uses(f"{_FASTAPI}InputTransport.start", "_receive_messages"),
    replaces(f"{_FASTAPI}InputTransport._receive_messages", "self"),
)
#: For replacements of pipecat's WebSocket client: its connection and its callbacks.
_CLIENT_CONNECTION = (
    calls(f"{_CLIENT}Session.__init__", "uri", "params", "callbacks", "transport_name"),
    uses(f"{_CLIENT}Session.__init__", "_uri", "_params", "_callbacks", "_transport_name"),
    uses(f"{_CLIENT}Session.disconnect", "_client_task", "task_manager"),
    uses(f"{_CLIENT}Session", "connection", "acquires", "releases"),
    calls("pipecat.utils.shared:acquires", "name"),
    uses(f"{_CLIENT}Transport.__init__", "_session", "_input", "_output", "_params"),
    replaces(f"{_CLIENT}Transport._on_connected", "self", "websocket"),
    replaces(f"{_CLIENT}Transport._on_disconnected", "self", "websocket"),
    calls(f"{_CLIENT}InputTransport.__init__", "transport", "session", "params"),
    calls(f"{_CLIENT}OutputTransport.__init__", "transport", "session", "params"),
)

#: For knowing who looks at audio frames.
_LISTENERS = (
    uses(f"{_BASE}.__init__", "_event_handlers"),
    uses("pipecat.utils.base_object:EventHandler", "handlers"),
    uses("pipecat.pipeline.worker_observer:WorkerObserver.__init__", "_proxies"),
    uses("pipecat.pipeline.worker:IdleFrameObserver.__init__", "_idle_timeout_frames"),
    uses("pipecat.pipeline.worker:PipelineWorker.__init__", "_reached_downstream_types", "_foreign_probes"),
    uses("pipecat.pipeline.pipeline:PipelineSink.__init__", "_downstream_push_frame"),
    uses("pipecat.processors.frameworks.rtvi.observer:RTVIObserver.__init__", "_params"),
)

#: For ``wsvoice run`` and applications with a server of their own.
RUNNER_FEATURES = (
    feature(
        "calls",
        "no call",
        *_EVENTS,
        uses("pipecat.processors.frame_processor:FrameProcessorSetup", "audio_in_sample_rate"),
        calls(f"{_FASTAPI}Transport.__init__", "websocket", "params", "input_name", "output_name"),
        calls(f"{_FASTAPI}Client.__init__", "websocket", "callbacks", "ws_close_timeout"),
        calls(f"{_FASTAPI}InputTransport.__init__", "transport", "client", "params"),
        calls(f"{_FASTAPI}OutputTransport.__init__", "transport", "client", "params"),
        calls("pipecat.runner.utils:parse_telephony_websocket", "websocket"),
        required=True,
    ),
    feature(
        "call-input",
        "marks do not come back to the bot, and a bot that does not keep up with the caller is not protected",
        *_RECEIVED,
    ),
    feature(
        "session-timeout",
        "session_timeout counts from the start of the call, and not from the last activity",
        uses(f"{_FASTAPI}InputTransport.start", "_monitor_websocket"),
        replaces(f"{_FASTAPI}InputTransport._monitor_websocket", "self", "timeout"),
    ),
    feature(
        "low-latency",
        "the bot is heard about 0.1 s later",
        uses(f"{_OUTPUT}.set_transport_ready", "_media_senders", "MediaSender"),
        uses(f"{_OUTPUT}.MediaSender.__init__", "_resampler"),
        uses(f"{_OUTPUT}.MediaSender", "resample"),
        calls(
            "pipecat.audio.resamplers.base_audio_resampler:BaseAudioResampler.resample",
            *("audio", "in_rate", "out_rate"),
        ),
    ),
    feature(
        "backlog",
        "the backlog of a bot that does not keep up is not bounded",
        uses(f"{_INPUT}._create_audio_task", "_audio_task", "_audio_in_queue"),
        uses(f"{_PROCESSOR}.__init__", "_FrameProcessor__input_queue"),
    ),
    feature("hang-up", "a bot without a handler for the end of its call goes on until it is cancelled", *_HANDLERS),
    feature(
        "parsed-handshake",
        "a bot that calls parse_telephony_websocket twice waits for a second handshake",
        uses("pipecat.runner.utils:parse_telephony_websocket", "_pipecat_parsed_telephony"),
    ),
    feature(
        "client-transport",
        "-t websocket has pipecat's own transport: messages that cannot be read end a session's input",
        *_RECEIVED,
        uses(f"{_FASTAPI}Transport.__init__", "_client"),
        uses("pipecat.serializers.protobuf:ProtobufFrameSerializer", "SERIALIZABLE_TYPES"),
    ),
    feature(
        "evals",
        "`pipecat eval` cannot connect",
        calls("pipecat.evals.serializer:parse_eval_connect", "message"),
        uses("pipecat.evals.serializer:EvalConnectionFlags"),
        uses("pipecat.evals.serializer:EvalSerializer"),
        uses("pipecat.evals.transport:EvalTransportParams"),
        calls("pipecat.evals.fastapi_transport:EvalFastAPIWebsocketTransport.__init__", "websocket", "params"),
    ),
    feature(
        "server-transport",
        "-t websocket-server has pipecat's own transport: messages that cannot be read end a client's input",
        uses(f"{_SERVER}InputTransport._server_task_handler", "_client_handler"),
        replaces(f"{_SERVER}InputTransport._client_handler", "self", "websocket"),
        calls(f"{_SERVER}InputTransport.__init__", "transport", "host", "port", "params", "callbacks"),
        uses(f"{_SERVER}InputTransport.__init__", "_websocket", "_callbacks"),
        uses(f"{_SERVER}Transport.__init__", "_host", "_port", "_params", "_callbacks", "_input", "_output"),
        uses(f"{_SERVER}Transport.input", "_input"),
        uses(f"{_SERVER}Transport.output", "_output"),
        uses(f"{_BASE}._call_event_handler", "_event_tasks"),
    ),
    feature(
        "server-port",
        "-t websocket-server is not possible",
        uses("pipecat.transports.websocket.server:", "websocket_serve"),
        uses(f"{_SERVER}InputTransport._server_task_handler", "websocket_serve", "_host", "_port", "origins"),
    ),
    feature(
        "dial-transport",
        "-t websocket-client has pipecat's own transport: why a server cannot be reached is only in its log",
        *_CLIENT_CONNECTION,
        uses(f"{_CLIENT}Session.connect", "_client_task", "_client_task_handler", "_websocket"),
        uses(f"{_CLIENT}Session._client_task_handler", "on_message", "on_disconnected"),
        calls(f"{_CLIENT}InputTransport.on_message", "websocket", "message"),
        calls(f"{_CLIENT}Transport._on_message", "websocket", "message"),
        uses(f"{_CLIENT}Callbacks", "on_connected", "on_disconnected", "on_message"),
    ),
    # From here on: patches.
    feature(
        "create-transport",
        "pipecat's create_transport needs the provider's credentials, and builds a transport without the call",
        replaces("pipecat.runner.utils:create_transport", "runner_args", "transport_params"),
    ),
    feature(
        "old-modules",
        "bots that import pipecat.transports.network and pipecat.vad, which are no longer there, could not be loaded",
        uses("pipecat.transports.websocket.fastapi:"),
        uses("pipecat.transports.websocket.server:"),
        uses("pipecat.transports.websocket.client:"),
        uses("pipecat.transports.smallwebrtc.transport:"),
        uses("pipecat.transports.smallwebrtc.connection:"),
        uses(_SILERO),
        uses("pipecat.audio.vad.vad_analyzer:"),
    ),
    feature(
        "old-params",
        "renamed and misspelt params are silently ignored",
        uses(
            "pipecat.transports.base_transport:TransportParams",
            *("audio_in_enabled", "audio_in_passthrough", "video_in_enabled", "video_out_enabled"),
            *("video_out_is_live", "video_out_width", "video_out_height", "video_out_bitrate"),
            *("video_out_framerate", "video_out_color_format"),
        ),
        uses("pipecat.pipeline.worker:PipelineParams", "start_metadata"),
        uses("pipecat.pipeline.worker:PipelineWorker._create_start_metadata", "start_metadata"),
        uses(f"{_TURN_ANALYZER}BaseTurnAnalyzer"),
        uses("pipecat.audio.vad.vad_analyzer:VADAnalyzer"),
    ),
    feature(
        "input-vad",
        "vad_analyzer and turn_analyzer in a transport's params do nothing",
        uses(f"{_INPUT}._create_audio_task", "_audio_task_handler", "_audio_in_queue"),
        replaces(f"{_INPUT}._audio_task_handler", "self"),
        uses(f"{_INPUT}._audio_task_handler", "audio_in_filter", "audio_in_passthrough", "push_frame", "task_done"),
        uses(f"{_INPUT}.__init__", "_params"),
        replaces(f"{_INPUT}.setup", "self", "setup"),
        replaces(f"{_INPUT}.cleanup", "self"),
        replaces(f"{_INPUT}.process_frame", "self", "frame", "direction"),
        uses(f"{_PROCESSOR}.processors"),
        uses(f"{_PROCESSOR}.next"),
        calls(f"{_PROCESSOR}.broadcast_frame", "frame_cls"),
        uses(f"{_PROCESSOR}.broadcast_interruption"),
        uses(
            f"{_VAD_CONTROLLER}.__init__",
            *("on_speech_started", "on_speech_stopped", "on_speech_activity", "on_push_frame"),
            "on_broadcast_frame",
        ),
        calls(f"{_VAD_CONTROLLER}.setup", "setup"),
        calls(f"{_VAD_CONTROLLER}.process_frame", "frame"),
        replaces(f"{_VAD_CONTROLLER}.start", "self"),
        replaces(f"{_VAD_CONTROLLER}.stop", "self"),
        calls(f"{_TURN_ANALYZER}BaseTurnAnalyzer.append_audio", "buffer", "is_speech"),
        uses(f"{_TURN_ANALYZER}EndOfTurnState", "COMPLETE"),
        # By these two, the processors that decide about turns are recognised.
        uses(
            "pipecat.processors.aggregators.llm_response_universal:LLMUserAggregator.__init__",
            *("_vad_controller", "_user_turn_controller"),
        ),
        uses("pipecat.turns.user_turn_processor:UserTurnProcessor.__init__", "_user_turn_controller"),
        uses("pipecat.processors.audio.vad_processor:VADProcessor.__init__", "_vad_controller"),
        uses(f"{_FRAMES}VADUserStartedSpeakingFrame", "start_secs"),
        uses(f"{_FRAMES}VADUserStoppedSpeakingFrame", "stop_secs"),
        uses(f"{_FRAMES}SpeechControlParamsFrame", "turn_params"),
        uses(f"{_FRAMES}VADParamsUpdateFrame"),
    ),
    feature(
        "serializers",
        "a serializer without the provider's credentials ends every call with a ValueError",
        *(
            contract
            for place in ("twilio:Twilio", "telnyx:Telnyx", "plivo:Plivo")
            for contract in (
                uses(
                    f"pipecat.serializers.{place}FrameSerializer.__init__",
                    *("auto_hang_up", "auto_hang_up is enabled but missing required parameters"),
                ),
                calls(f"pipecat.serializers.{place}FrameSerializer.__init__", "params"),
                uses(f"pipecat.serializers.{place}FrameSerializer.InputParams", "auto_hang_up"),
            )
        ),
    ),
    feature(
        "shared-models",
        "every call loads the models of voice and turn detection again, while all other calls wait",
        uses(_SILERO, "onnxruntime"),
        uses(f"{_SILERO}SileroOnnxModel.__init__", "onnxruntime", "InferenceSession", "sess_options"),
        calls(f"{_SILERO}SileroVADAnalyzer.__init__", "sample_rate", "params"),
        uses(_SMART_TURN, "ort"),
        uses(f"{_SMART_TURN}LocalSmartTurnAnalyzerV3.__init__", "ort", "InferenceSession", "sess_options"),
    ),
    feature(
        "causes",
        "the end of a call does not say which service failed, or what an event handler raised",
        uses(f"{_PROCESSOR}.push_error", "push_error_frame"),
        calls(f"{_PROCESSOR}.push_error_frame", "error"),
        uses(f"{_PROCESSOR}.push_error_frame", "processor"),
        uses(_PROCESSOR, "Error processing frame: "),
        uses(f"{_FRAMES}ErrorFrame", "error", "exception", "processor"),
        uses(f"{_BASE}._call_event_handler", "_run_handler"),
        calls(f"{_BASE}._run_handler", "event_name", "handler"),
    ),
    feature(
        "quiet-audio",
        "every call takes about half as much processor time again",
        replaces(f"{_PROCESSOR}.push_frame", "self", "frame", "direction"),
        replaces(f"{_PROCESSOR}.process_frame", "self", "frame", "direction"),
        *_LISTENERS,
    ),
    feature(
        "inline-vad",
        "voice activity detection passes a thread for every piece of audio, one call after the other",
        calls("pipecat.audio.vad.vad_analyzer:VADAnalyzer._run_analyzer", "buffer"),
        uses("pipecat.audio.vad.vad_analyzer:VADAnalyzer.analyze_audio", "run_in_executor", "_run_analyzer"),
        replaces("pipecat.audio.vad.vad_analyzer:VADAnalyzer.analyze_audio", "self", "buffer"),
        uses("pipecat.audio.vad.vad_analyzer:VADAnalyzer._run_analyzer", "_vad_buffer", "_vad_frames_num_bytes"),
        replaces(f"{_SILERO}SileroVADAnalyzer.voice_confidence", "self", "buffer"),
        uses(f"{_SILERO}SileroVADAnalyzer.voice_confidence", "int16", "_maybe_reset_model"),
        calls(f"{_SILERO}SileroVADAnalyzer._maybe_reset_model", "confidence"),
        uses(
            f"{_SILERO}SileroOnnxModel.__call__",
            *("_context", "_state", "_last_sr", "_last_batch_size", "input", "state", "sr"),
        ),
        calls(f"{_SILERO}SileroVADAnalyzer.__init__", "sample_rate", "params"),
    ),
    feature(
        "frame-queue",
        "a frame waits for the event loop before each processor",
        uses(f"{_PROCESSOR}.__init__", "FrameProcessorQueue"),
        uses(f"{_PROCESSOR}Queue", "START_PRIORITY", "SYSTEM_PRIORITY"),
        calls(f"{_PROCESSOR}Queue.put", "item"),
        uses(f"{_PROCESSOR}.queue_frame", "put"),
        uses(f"{_PROCESSOR}.__input_frame_task_handler", "get", "task_done"),
    ),
    feature(
        "quick-start",
        "a call takes a little longer to start",
        replaces(f"{_WORKER_OBSERVER}._send_to_proxy", "self", "data"),
        uses(f"{_WORKER_OBSERVER}._send_to_proxy", "_proxies", "queue", "put"),
        calls(f"{_WORKER_OBSERVER}.on_process_frame", "data"),
        uses(f"{_WORKER_OBSERVER}.on_process_frame", "_send_to_proxy"),
        uses(f"{_WORKER_OBSERVER}.on_processor_setup", "_send_to_proxy"),
        uses(f"{_WORKER_OBSERVER}._proxy_task_handler", "on_process_frame", "on_processor_setup"),
        uses("pipecat.workers.base_worker:BaseWorker.__init__", *_COLLECTED),
        uses("pipecat.pipeline.worker_observer:", "FrameProcessed", "ProcessorSetUp"),
        calls("pipecat.observers.base_observer:BaseObserver.on_process_frame", "data"),
        calls("pipecat.observers.base_observer:BaseObserver.on_processor_setup", "data"),
        replaces("pipecat.pipeline.job_decorator:_collect_job_handlers", "obj"),
        replaces("pipecat.pipeline.worker_ready_decorator:_collect_worker_ready_handlers", "obj"),
    ),
    feature(
        "direct-input",
        "the caller's audio passes one more task",
        replaces(f"{_INPUT}._create_audio_task", "self"),
        replaces(f"{_INPUT}._cancel_audio_task", "self"),
        replaces(f"{_INPUT}.push_audio_frame", "self", "frame"),
        uses(f"{_INPUT}._create_audio_task", "_audio_task", "_audio_in_queue"),
        uses(f"{_INPUT}.push_audio_frame", "audio_in_enabled", "_paused", "_audio_in_queue"),
        uses(f"{_INPUT}._audio_task_handler", "audio_in_filter", "audio_in_passthrough", "push_frame"),
        uses(f"{_PROCESSOR}.__init__", "_enable_direct_mode"),
        uses(f"{_BASE}.__init__", "_event_handlers"),
    ),
    feature(
        "media-sender",
        "the bot's audio passes three more tasks",
        uses(f"{_OUTPUT}.set_transport_ready", "_media_senders", "MediaSender"),
        calls(
            f"{_OUTPUT}.MediaSender.__init__", "transport", "destination", "sample_rate", "audio_chunk_size", "params"
        ),
        uses(f"{_OUTPUT}.MediaSender.__init__", "_volume", "_volume_gain", "_filter", "_bot_speaking"),
        uses(f"{_OUTPUT}.set_transport_ready", "register_audio_destination", "OutputTransportReadyFrame"),
        replaces(f"{_OUTPUT}.set_transport_ready", "self", "frame"),
        uses(f"{_OUTPUT}.MediaSender._create_audio_task", "_audio_queue", "_audio_task_handler"),
        replaces(f"{_OUTPUT}.MediaSender._audio_task_handler", "self"),
        replaces(f"{_OUTPUT}.MediaSender.handle_audio_frame", "self", "frame"),
        replaces(f"{_OUTPUT}.MediaSender._bot_stopped_speaking", "self"),
        uses(
            f"{_OUTPUT}.MediaSender._audio_task_handler",
            "_handle_frame",
            "_send_silence",
            "_internal_write_audio_frame",
        ),
        uses(f"{_OUTPUT}.MediaSender.handle_interruptions", "_bot_stopped_speaking", "_audio_queue", "reset"),
        calls(f"{_OUTPUT}.MediaSender._handle_bot_speech", "frame"),
        calls(f"{_OUTPUT}.MediaSender._filter_audio", "frame"),
        calls(f"{_OUTPUT}.MediaSender._apply_volume", "frame"),
        uses(
            f"{_PROCESSOR}.__init__",
            *("_FrameProcessor__input_queue", "_FrameProcessor__process_queue", "_FrameProcessor__should_block_frames"),
            *("_FrameProcessor__process_current_frame", "_FrameProcessor__should_block_system_frames", "_cancelling"),
        ),
        replaces(f"{_PROCESSOR}.queue_frame", "self", "frame", "direction", "callback"),
        *_LISTENERS,
    ),
)

#: For ``wsvoice dial`` with a bot as the caller.
CALLER_FEATURES = (
    feature(
        "caller-bot",
        "a bot cannot be the caller",
        *_EVENTS,
        *_CLIENT_CONNECTION,
        uses(f"{_CLIENT}InputTransport.setup", "connect"),
        uses(f"{_CLIENT}OutputTransport.write_audio_frame", "_write_frame"),
        calls(f"{_CLIENT}OutputTransport._write_frame", "frame"),
        uses(f"{_OUTPUT}.write_dtmf", "_supports_native_dtmf", "_write_dtmf_native"),
        replaces(f"{_OUTPUT}._supports_native_dtmf", "self"),
        replaces(f"{_OUTPUT}._write_dtmf_native", "self", "frame"),
        *_HANDLERS,
        required=True,
    ),
)


def require_caller_features() -> None:
    """Raise :exc:`ConfigError` if the installed pipecat lets no bot be the caller, before its transport is imported."""
    version = metadata.version("pipecat-ai")
    if not is_tested(version):
        missing(CALLER_FEATURES, version)


def is_tested(version: str) -> bool:
    """Whether all tests have passed with this version of pipecat."""
    return version.startswith(tuple(f"{each}." for each in TESTED))


def missing(features: Collection[Feature], version: str) -> dict[Feature, Contract]:
    """
    Return the features that the installed pipecat does not allow, each with a contract that does not hold.

    Raises:
        ConfigError: If one of them is required.
    """
    broken = {}
    for feature in features:
        contract = next((each for each in feature.contracts if not each.holds()), None)
        if contract is not None:
            if feature.required:
                raise unusable(version, f"{contract.place.replace(':', '.')} has changed")
            broken[feature] = contract
    return broken


def unusable(version: str, why: str) -> ConfigError:
    """Return the error for a pipecat that cannot be used."""
    return ConfigError(
        f"wsvoice cannot work with pipecat {version}: {why}",
        hint=f"tested is pipecat {', '.join(f'{each}.x' for each in TESTED)}; "
        f"install it (pip install 'pipecat-ai=={TESTED[-1]}.*'), or a newer wsvoice",
    )


def _code(place: str) -> CodeType | None:
    """Return the compiled code of a module, a class or a function; ``None`` if it does not exist."""
    module, _, path = place.partition(":")
    code = _module_code(module)
    for name in filter(None, path.split(".")):
        if code is None:
            break
        found = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name]
        code = found[-1] if found else None
    if code is None and module in sys.modules:
        # The function may be inherited.
        try:
            live = unwrap(attrgetter(path)(sys.modules[module]))
        except AttributeError:
            return None
        code = getattr(live, "__code__", None)
    return code


@cache
def _module_code(module: str) -> CodeType | None:
    """Return a module's compiled code, from its cache if possible; nothing is executed."""
    package, *parts = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *parts)
    for each in (path.with_suffix(".py"), path / "__init__.py"):
        if each.is_file():
            return SourceFileLoader(module, str(each)).get_code(module)
    return None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each.co_name
            yield from _names(each)
        elif isinstance(each, str):
            yield each
        elif isinstance(each, tuple):
            yield from (inner for inner in each if isinstance(inner, str))
