"""ngrok's agent on this machine, as ``--tunnel ngrok`` would find it; nothing is started or downloaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

#: In the agent's configuration: https://ngrok.com/docs/agent/config/v3/#authtoken
_TOKEN = re.compile(r"^\s*authtoken:\s*\S", re.MULTILINE)


def has_token(environ: Mapping[str, str]) -> bool:
    """Whether the account's token is in the environment or in the agent's own configuration."""
    from pyngrok import conf

    if environ.get("NGROK_AUTHTOKEN", "").strip():
        return True
    named = conf.get_default().config_path
    path = Path(named) if named else Path(conf.DEFAULT_NGROK_CONFIG_PATH)
    with suppress(OSError):
        return _TOKEN.search(path.read_text("utf-8", "replace")) is not None
    return False


def find_agent(environ: Mapping[str, str]) -> Path | None:
    """Return the agent's program; ``None`` if it is not on this machine."""
    from pyngrok import conf

    path = Path(environ.get("PYNGROK_NGROK_PATH") or conf.get_default().ngrok_path)
    found = path if path.is_file() else shutil.which("ngrok")
    return Path(found) if found else None
