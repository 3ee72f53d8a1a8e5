"""Environment variables: the providers' credentials, and names that are probably misspelt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from wsvoice.config.settings import DIAL_SETTINGS, ENV_FILE, RUN_SETTINGS

#: Holds the key for ``POST /start`` on a public address.
START_KEY = "WSVOICE_START_KEY"
#: Holds the file for causes, set by ``wsvoice dial`` for the server that it starts; not a setting for users.
CAUSES_VARIABLE = "WSVOICE_CAUSES"


def check_variables(
    environ: Mapping[str, str], dotenv: Mapping[str, str], env_file_name: str, credentials: Mapping[str, str]
) -> list[str]:
    """Return warnings about variables that are probably misspelt, and about placeholders."""
    warnings = []
    for given, file, known_before in ((environ, "", ()), (dotenv, env_file_name, environ.keys())):
        warnings += _unknown_variables(given, file, known_before)
        warnings += _misspelt_credentials(given, file, known_before, credentials)
    return warnings + [
        f"{name} looks like a placeholder: put the real value there"
        for name, value in credentials.items()
        if _PLACEHOLDER.fullmatch(value)
    ]


def _unknown_variables(given: Mapping[str, str], file: str, known_before: Collection[str]) -> list[str]:
    """Return warnings about ``WSVOICE_`` variables that no command knows."""
    known = {START_KEY, CAUSES_VARIABLE} | {
        name
        for command, settings in (("run", RUN_SETTINGS), ("dial", DIAL_SETTINGS))
        for setting in (*settings, ENV_FILE)
        for name in setting.variables(command)
    }
    warnings = []
    for name in sorted(given):
        written = name.upper().replace("-", "_")
        if not written.startswith("WSVOICE_") or name in known or name in known_before or not given[name]:
            continue
        # It may be right but for a command that it is not for, as in WSVOICE_RUN_PORT.
        bare = re.sub("^WSVOICE_(RUN|DIAL)_", "WSVOICE_", written)
        rests = sorted(each.removeprefix("WSVOICE_") for each in known)
        close = difflib.get_close_matches(written.removeprefix("WSVOICE_"), rests, n=1, cutoff=0.7)
        nearest_name = bare if bare in known else f"WSVOICE_{close[0]}" if close else None
        meant = f"did you mean {nearest_name}?" if nearest_name else "no setting has that name"
        warnings.append(f"{name}{f' in {file}' if file else ''} is not read: {meant}")
    return warnings


_PLACEHOLDER = re.compile(
    r"(?:your|my|insert|enter|replace)[ _-].*|<.*>|\.\.\.|…|[x*]{3,}|change[ _-]?me|todo|placeholder", re.IGNORECASE
)


def _misspelt_credentials(
    given: Mapping[str, str], file: str, known_before: Collection[str], credentials: Mapping[str, str]
) -> list[str]:
    """Return warnings about variables whose name is nearly that of a credential which is not set."""
    names = _credential_names()
    missing = {name.replace("_", ""): name for name in names if name not in credentials}
    warnings = []
    for name in sorted(given):
        if name in names or name in known_before or not given[name]:
            continue
        written = re.sub("[_-]", "", name.upper())
        close = difflib.get_close_matches(written, missing, n=1, cutoff=0.9)
        if close:
            where = f" in {file}" if file else ""
            warnings.append(f"{name}{where} is not read: did you mean {missing[close[0]]}?")
    return warnings


def read_credentials(environ: Mapping[str, str], dotenv: Mapping[str, str]) -> dict[str, str]:
    """
    Return every provider's credentials, without spaces around them.

    An empty value in the environment overrides ``.env``.
    """
    both = {**dotenv, **environ}
    stripped = {name: both.get(name, "").strip() for name in (*_credential_names(), START_KEY)}
    return {name: value for name, value in stripped.items() if value}


def _credential_names() -> Mapping[str, None]:
    """Return the names of the providers' credentials, in their order."""
    from wsvoice.providers import PROVIDERS, load_company

    return dict.fromkeys(name for provider in PROVIDERS for name in load_company(provider).credential_names)
