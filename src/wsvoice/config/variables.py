"""Environment variables: the providers' credentials, and names that are probably misspelt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from wsvoice.config.settings import (
    DEPLOY_SETTINGS,
    DIAL_SETTINGS,
    ENV_FILE,
    REAL_CALL_SETTINGS,
    RUN_SETTINGS,
    TEST_SETTINGS,
)
from wsvoice.config.state import STATE_VARIABLE
from wsvoice.config.values import split_http_url

#: Holds the key for ``POST /start`` on a public address.
START_KEY = "WSVOICE_START_KEY"
#: Holds the key for ``POST /dial``.
DIAL_KEY = "WSVOICE_DIAL_KEY"
#: Holds the secret, or several with commas between them, that the servers of a fleet sign stream tokens with.
STREAM_SECRET = "WSVOICE_STREAM_SECRET"
#: Holds the token for ``/metrics`` on the main port, which is closed without.
METRICS_TOKEN = "WSVOICE_METRICS_TOKEN"
#: Holds the token of the account at ngrok, which its agent reads too: https://ngrok.com/docs/agent/
NGROK_TOKEN = "NGROK_AUTHTOKEN"
#: Holds the key of services that transcribe and judge what was said in test calls; OpenAI's own name for it.
MODEL_KEY = "OPENAI_API_KEY"
#: What lets others use what this server offers beside calls.
OWN_KEYS = (START_KEY, DIAL_KEY, METRICS_TOKEN)
#: Holds the file for causes, set by ``wsvoice dial`` for the server that it starts; not a setting for users.
CAUSES_VARIABLE = "WSVOICE_CAUSES"


def check_variables(
    environ: Mapping[str, str], dotenv: Mapping[str, str], env_file_name: str, credentials: Mapping[str, str]
) -> list[str]:
    """Return warnings about variables that are probably misspelt, and about placeholders."""
    known = {*OWN_KEYS, STREAM_SECRET, NGROK_TOKEN, CAUSES_VARIABLE, STATE_VARIABLE}
    tables = {
        "run": RUN_SETTINGS,
        "dial": (*DIAL_SETTINGS, *REAL_CALL_SETTINGS),
        "deploy": DEPLOY_SETTINGS,
        "test": TEST_SETTINGS,
    }
    for command, table in tables.items():
        known.update(name for each in (*table, ENV_FILE) for name in each.variables(command))
    names = _credential_names()
    missing = [name for name in (*names, NGROK_TOKEN) if name not in credentials]
    warnings = []
    for given, place, known_before in ((environ, "", ()), (dotenv, f" in {env_file_name}", environ.keys())):
        for name in sorted(given.keys() - known_before - known - names.keys()):
            if given[name] and (meant := _meant(name, known, missing)):
                warnings.append(f"{name}{place} is not read: {meant}")
    return warnings + [
        f"{name} looks like a placeholder: put the real value there"
        for name, value in credentials.items()
        if _PLACEHOLDER.fullmatch(value)
    ]


_PLACEHOLDER = re.compile(
    r"(?:your|my|insert|enter|replace)[ _-].*|<.*>|\.\.\.|…|[x*]{3,}|change[ _-]?me|todo|placeholder", re.IGNORECASE
)


def _meant(name: str, known: Collection[str], missing: Sequence[str]) -> str | None:
    """Return what an unknown ``WSVOICE_`` variable, or one that is nearly a missing credential, was meant to be."""
    written = name.upper().replace("-", "_")
    if written.startswith("WSVOICE_"):
        # It may be right but for a command that it is not for, as in WSVOICE_RUN_PORT.
        bare = re.sub("^WSVOICE_(RUN|DIAL|DEPLOY|TEST)_", "WSVOICE_", written)
        rests = sorted(each.removeprefix("WSVOICE_") for each in known)
        close = difflib.get_close_matches(written.removeprefix("WSVOICE_"), rests, n=1, cutoff=0.7)
        nearest = bare if bare in known else f"WSVOICE_{close[0]}" if close else None
        return f"did you mean {nearest}?" if nearest else "no setting has that name"
    joined = {each.replace("_", ""): each for each in missing}
    close = difflib.get_close_matches(written.replace("_", ""), joined, n=1, cutoff=0.9)
    return f"did you mean {joined[close[0]]}?" if close else None


def read_credentials(environ: Mapping[str, str], dotenv: Mapping[str, str]) -> dict[str, str]:
    """
    Return the credentials of every provider and of ngrok, without spaces around them.

    An empty value in the environment overrides ``.env``.
    """
    both = {**dotenv, **environ}
    stripped = {
        name: both.get(name, "").strip() for name in (*_credential_names(), *OWN_KEYS, STREAM_SECRET, NGROK_TOKEN)
    }
    return {name: value for name, value in stripped.items() if value}


def find_from_number(provider: str, environ: Mapping[str, str], dotenv: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the number that calls through `provider` come from, and the variable that holds it; ``None`` without."""
    both = {**dotenv, **environ}
    for name in from_number_variables(provider):
        if found := both.get(name, "").strip():
            return found, name
    return None


def find_traces_address(variables: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """
    Return where traces are sent to by OpenTelemetry's own variables, and warnings about them.

    ``None`` where none are set, where tracing is switched off, or where what is set cannot be used: then no traces are
    sent, and calls go on.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """
    given = {name: variables.get(name, "").strip() for name in _TRACE_VARIABLES}
    own, base, own_protocol, protocol, exporter, is_disabled = given.values()
    address = own or base
    if not address or is_disabled.lower() == "true" or "otlp" not in (exporter or "otlp").split(","):
        return None, []
    name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
    parts = split_http_url(address)
    if parts is None:
        return None, [f"no traces are sent: {name} is no http(s) URL, such as http://localhost:4318"]
    if (own_protocol or protocol or "http/protobuf") != "http/protobuf":
        spoken = own_protocol or protocol
        return None, [f"no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL is {spoken}, and wsvoice speaks http/protobuf"]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", []


_TRACE_VARIABLES = (
    *("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    *("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    *("OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"),
)


def from_number_variables(provider: str) -> tuple[str, ...]:
    """Return the variables that may hold it; the second is what pipecat's own examples of outbound calls read."""
    return tuple(f"{provider.upper()}_{what}_NUMBER" for what in ("FROM", "PHONE"))


def _credential_names() -> dict[str, None]:
    """Return the names of the providers' credentials, in their order."""
    from wsvoice.providers import PROVIDERS, load_company

    return dict.fromkeys(name for provider in PROVIDERS for name in load_company(provider).credential_names)
