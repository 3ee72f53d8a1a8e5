"""The settings of each command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from wsvoice.config import values

Verify = Literal["auto", "enforce", "off"]
StreamAuth = Literal["token", "none"]
Method = Literal["GET", "POST"]
#: What traces leave out beside secrets: who called, or that and the keys that were pressed.
Redact = Literal["callers", "digits"]
#: What is not compared when a call is placed again: how long the caller waits, what the bot says, which keys it
#: presses, who ends the call, what is found wrong.
Ignored = Literal["waits", "sound", "keys", "end", "findings"]
#: What becomes of a call that a machine answers: the bot talks to it, leaves a message after its greeting, or it ends.
Voicemail = Literal["bot", "leave", "hang-up"]
#: What is found out about who answers: as :data:`wsvoice.providers.account.Detection`.
Detection = Literal["off", "detect", "greeting-end"]
#: What may be detected for each way with machines; the first is enough.
DETECTIONS: Mapping[Voicemail, tuple[Detection, ...]] = {
    "bot": ("off", "detect", "greeting-end"),
    "hang-up": ("detect", "greeting-end"),
    "leave": ("greeting-end",),
}

#: What adds and removes pods: KEDA, a HorizontalPodAutoscaler, or nobody.
Autoscale = Literal["keda", "hpa", "none"]

#: How many calls a process takes at once unless `--max-calls` says otherwise: about what one core carries.
CALLS_PER_WORKER = 100

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Setting:
    """
    A setting: its option's name, the field it fills, and how its value is read.

    ``flag`` is what messages call the flag if not ``--name``. With ``own``, the variable of another command's setting
    of the same name is not used.
    """

    name: str
    field: str
    parse: Callable[[object, str], object]
    flag: str = ""
    own: bool = False

    def variables(self, command: str) -> tuple[str, ...]:
        """Return the environment variables for `command`; the first one that is set wins."""
        name = self.name.upper().replace("-", "_")
        if command == "run":
            return (f"WSVOICE_{name}",)
        particular = f"WSVOICE_{command.upper()}_{name}"
        return (particular,) if self.own else (particular, f"WSVOICE_{name}")


RUN_SETTINGS: tuple[Setting, ...] = (
    Setting("bot", "bot", values.parse_text, flag="BOT"),
    Setting("transport", "transport", values.parse_transport, flag="-t"),
    Setting("url", "url", values.parse_ws_url),
    Setting("header", "headers", values.parse_headers),
    Setting("proxy", "proxy", values.domain("-x", "bot.example.com"), flag="-x"),
    Setting("tunnel", "tunnel", values.parse_tunnel),
    Setting("tunnel-domain", "tunnel_domain", values.domain("--tunnel-domain", "bot.ngrok.app")),
    Setting("number", "number", values.parse_number),
    Setting("host", "host", values.parse_host),
    Setting("port", "port", values.parse_port),
    Setting("workers", "workers", values.parse_workers),
    Setting("reload", "reload", values.parse_switch),
    Setting("max-calls", "max_calls", values.parse_limit),
    Setting("max-calls-per-number", "max_calls_per_number", values.parse_limit),
    Setting("max-calls-per-hour", "max_calls_per_hour", values.parse_limit),
    Setting("max-minutes-per-day", "max_minutes_per_day", values.parse_limit),
    Setting("max-call-time", "max_call_time_s", values.parse_duration),
    Setting("busy-message", "busy_message", values.parse_busy_message),
    Setting("max-lag", "max_lag_s", values.parse_duration),
    Setting("param", "parameters", values.pairs("--param language=en")),
    Setting("verify", "verify", values.one_of(*get_args(Verify))),
    Setting("stream-auth", "stream_auth", values.one_of(*get_args(StreamAuth))),
    Setting("record", "record", values.parse_folder),
    Setting("trace", "trace", values.parse_folder),
    Setting("redact", "redact", values.one_of(*get_args(Redact))),
    Setting("drain-timeout", "drain_timeout_s", values.parse_duration),
    Setting("drain-linger", "drain_linger_s", values.parse_duration),
    Setting("redis-url", "redis", values.parse_redis_url, flag="--redis"),
    Setting("metrics-port", "metrics_port", values.parse_metrics_port),
    Setting("metrics-host", "metrics_host", values.parse_host),
    Setting("log-level", "log_level", values.one_of(*LOG_LEVELS)),
    Setting("log-format", "log_format", values.one_of(*LOG_FORMATS)),
    Setting("live", "live", values.parse_switch),
    Setting("disable-patches", "disabled_patches", values.parse_names),
)

DIAL_SETTINGS: tuple[Setting, ...] = (
    Setting("target", "target", values.parse_text, flag="TARGET"),
    Setting("transport", "transport", values.parse_provider, flag="-t"),
    Setting("audio", "audio", values.parse_paths),
    Setting("say", "say", values.parse_utterances),
    Setting("voice", "voice", values.parse_text),
    Setting("dtmf", "dtmf", values.parse_digits),
    Setting("from", "from_number", values.parse_text),
    Setting("to", "to_number", values.parse_text),
    Setting("param", "parameters", values.pairs("--param language=en")),
    Setting("duration", "duration_s", values.parse_positive_duration),
    Setting("listen", "listen_s", values.parse_duration),
    Setting("response-timeout", "response_timeout_s", values.parse_positive_duration),
    Setting("record", "record", values.parse_wav_to_write, own=True),
    Setting("trace", "trace", values.parse_trace_to_write, own=True),
    Setting("redact", "redact", values.one_of(*get_args(Redact)), own=True),
    Setting("open", "opens_page", values.parse_switch, own=True),
    Setting("transcriber", "transcriber", values.parse_text),
    Setting("transcriber-model", "transcriber_model", values.parse_text),
    Setting("language", "language", values.parse_language),
    Setting("force-ws", "force_ws", values.parse_switch),
    Setting("allow-private", "allow_private", values.parse_switch),
    Setting("method", "method", values.one_of(*get_args(Method))),
    Setting("caller", "caller", values.parse_text),
    Setting("probe", "probe", values.parse_switch),
    Setting("quirk", "quirks", values.pairs("--quirk reorder=0.1")),
    Setting("calls", "calls", values.at_least_one("for one call, leave it out"), flag="-n", own=True),
    Setting("ramp", "ramp_per_s", values.parse_rate),
    Setting("concurrency", "concurrency", values.at_least_one("for no limit, leave it out")),
    Setting("find-knee", "find_knee", values.parse_switch),
    Setting("max-late", "max_late_s", values.parse_positive_duration),
    Setting("max-late-share", "max_late_share", values.parse_share),
    Setting("replay", "replay", values.parse_file, own=True),
    Setting("adaptive", "adaptive", values.parse_switch, own=True),
    Setting("max-slower", "max_slower", values.parse_growth, own=True),
    Setting("min-correlation", "min_correlation", values.parse_share, own=True),
    Setting("ignore", "ignored", values.some_of(*get_args(Ignored)), own=True),
    Setting("json", "as_json", values.parse_switch, own=True),
)
#: Those that say how a call is placed again, and those that say what a caller does, which its trace says then.
REPLAY_OPTIONS = ("adaptive", "max-slower", "min-correlation", "ignore")
NOT_WITH_REPLAY = ("audio", "say", "voice", "dtmf", "caller", "probe", "duration", "listen", "calls", "find-knee")

#: How long a real call may ring, and last, in seconds; a server takes no other order.
MAX_RING_S, MAX_DURATION_S = 600, 24 * 3600

#: Of `wsvoice dial` where its target is a phone number; those of the same name as above are the same option.
REAL_CALL_SETTINGS: tuple[Setting, ...] = (
    Setting("target", "to_number", values.parse_number, flag="TARGET"),
    Setting("transport", "transport", values.parse_provider, flag="-t"),
    Setting("from", "from_number", values.parse_number),
    Setting("bot", "bot", values.parse_text, own=True),
    Setting("server", "server", values.parse_server, own=True),
    *(setting for setting in RUN_SETTINGS if setting.name in ("proxy", "tunnel", "tunnel-domain")),
    Setting("timeout", "ring_timeout_s", values.duration_up_to(MAX_RING_S, "10m"), own=True),
    Setting("time-limit", "time_limit_s", values.duration_up_to(MAX_DURATION_S, "24h"), own=True),
    Setting("voicemail", "voicemail", values.one_of(*get_args(Voicemail)), own=True),
    Setting("detect", "detection", values.one_of(*get_args(Detection)), own=True),
    Setting("param", "parameters", values.pairs("--param language=en")),
    Setting("json", "as_json", values.parse_switch, own=True),
)

#: Of `wsvoice deploy k8s` and `wsvoice deploy compose`: where the bot runs, which the bot's own settings do not say.
DEPLOY_SETTINGS: tuple[Setting, ...] = (
    Setting("image", "image", values.parse_image, own=True),
    Setting("host", "host", values.parse_public_name, own=True),
    Setting("name", "name", values.parse_service_name, own=True),
    Setting("namespace", "namespace", values.parse_label, own=True),
    Setting(
        "calls-per-pod",
        "calls_per_pod",
        values.at_least_one(f"a pod needs a limit; left out, it is the bot's own max-calls, or {CALLS_PER_WORKER}"),
        own=True,
    ),
    Setting("longest-call", "longest_call_s", values.duration_up_to(MAX_DURATION_S, "24h"), own=True),
    Setting("autoscale", "autoscale", values.one_of(*get_args(Autoscale)), own=True),
    Setting("prometheus", "prometheus", values.parse_prometheus, own=True),
    Setting("secret", "secret", values.parse_object_name, own=True),
    Setting("min-pods", "min_pods", values.at_least_one("one pod is the least"), own=True),
    Setting("max-pods", "max_pods", values.at_least_one("one pod is the least"), own=True),
)

#: Of `wsvoice test`, and of pytest where it runs scenarios.
TEST_SETTINGS: tuple[Setting, ...] = (
    Setting("processes", "processes", values.at_least_one("for one call at a time, leave it out"), flag="-n", own=True),
    Setting("repeat", "repeat", values.at_least_one("for what each scenario says, leave it out"), own=True),
    Setting("save-baseline", "save_baseline", values.parse_file, own=True),
    Setting("compare", "compare", values.parse_file, own=True),
    Setting("max-slower", "max_slower", values.parse_growth, own=True),
    Setting("traces", "traces", values.parse_folder, own=True),
    Setting("transcriber", "transcriber", values.parse_text),
    Setting("transcriber-model", "transcriber_model", values.parse_text),
    Setting("judge-url", "judge_url", values.parse_http_url, own=True),
    Setting("judge-model", "judge_model", values.parse_text, own=True),
)

#: Names the file in which others may be, so it is read first and fills no field.
ENV_FILE = Setting("env-file", "", values.parse_text)
