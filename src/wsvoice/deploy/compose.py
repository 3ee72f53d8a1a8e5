"""
The files with which Docker Compose runs a bot on one machine, behind Caddy, which has its certificate made.

https://docs.docker.com/reference/compose-file/, https://caddyserver.com/docs/caddyfile/directives/reverse_proxy
"""

from __future__ import annotations

import shlex
from typing import Any

from wsvoice.config import STREAM_SECRET
from wsvoice.deploy.command import (
    PORT,
    STATE_FOLDER,
    TEMPORARY_FOLDER,
    Service,
    command,
    environment,
    without_variables,
    writable_folders,
)
from wsvoice.deploy.sizing import shown
from wsvoice.deploy.yaml_text import comment, dump

Json = dict[str, Any]

#: How often Caddy looks whether a bot takes calls; several times while it lingers.
HEALTH_INTERVAL_S = 2
#: For how long Caddy tries to reach a bot that takes a call.
TRY_S = 5


def compose_file(service: Service, *, root: str, folder: str) -> str:
    """
    Return the compose file.

    Args:
        service: The bot.
        root: The project's folder, from where the compose file is: ``..``.
        folder: Where the compose file is, from the project's folder: ``deploy``.
    """
    volumes = ["caddy-data", "caddy-config", "state", "state-next"]
    if service.records:
        volumes.append("recordings")
    document = {
        "name": service.name,
        "services": {
            "caddy": _caddy(service),
            "bot": _bot(service, root=root, folder=folder),
            "bot-next": {
                "profiles": ["update"],
                "extends": {"service": "bot"},
                "volumes": [f"state-next:{STATE_FOLDER}"],
            },
        },
        "volumes": {name: {} for name in volumes},
    }
    return _introduction(service, folder) + dump(document, _notes(service))


def _introduction(service: Service, folder: str) -> str:
    file = shlex.quote("compose.yaml" if folder == "." else f"{folder}/compose.yaml")
    needed = ", ".join(dict.fromkeys((*service.variables, STREAM_SECRET)))
    return comment(
        "Made by `wsvoice deploy compose`. In the project's folder, on a machine to which the host's name leads, and\n"
        "whose ports 80 and 443 can be reached:\n"
        f"  docker compose -f {file} up -d --build --wait\n"
        f"It reads .env, which has to have {needed};\n"
        f"{STREAM_SECRET} is made by\n"
        "  openssl rand -hex 32\n"
        "A value with a dollar sign goes between single quotes there, or Compose puts a variable in its place.\n"
        "A new version, without a caller noticing: bot-next takes the calls while those of the old bot finish.\n"
        f"  docker compose -f {file} --profile update up -d --build --wait bot-next\n"
        f"  docker compose -f {file} up -d --build --wait bot\n"
        f"  docker compose -f {file} --profile update stop bot-next"
    )


def _caddy(service: Service) -> Json:
    return {
        "image": "caddy:2",
        "restart": "unless-stopped",
        "ports": ["80:80", "443:443", "443:443/udp"],
        "volumes": ["./Caddyfile:/etc/caddy/Caddyfile:ro", "caddy-data:/data", "caddy-config:/config"],
        "logging": _LOGGING,
    }


#: A log without a limit fills the disk in the end.
_LOGGING = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


def _bot(service: Service, *, root: str, folder: str) -> Json:
    volumes = {name: path for name, path in writable_folders(service).items() if path != TEMPORARY_FOLDER}
    check = f"import urllib.request; urllib.request.urlopen('http://localhost:{PORT}/readyz', timeout=3)"
    path = "Dockerfile" if folder == "." else f"{folder}/Dockerfile"
    return {
        "image": service.image or f"{service.name}:latest",
        "build": {"context": without_variables(root), "dockerfile": without_variables(path)},
        "command": [without_variables(each) for each in command(service)],
        "env_file": [without_variables(f"{root.rstrip('/')}/.env")],
        "environment": environment(),
        "init": True,
        "restart": "unless-stopped",
        "stop_signal": "SIGTERM",
        "stop_grace_period": f"{service.sizing.grace_s}s",
        "healthcheck": {
            "test": ["CMD", "python", "-c", check],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "120s",
        },
        "read_only": True,
        "tmpfs": [TEMPORARY_FOLDER],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "volumes": [f"{name}:{path}" for name, path in volumes.items()],
        "logging": _LOGGING,
    }


def _notes(service: Service) -> dict[str, str]:
    return {
        "ports": "Of the bot no port is published, that of its metrics included: Caddy reaches it by its name.",
        "caddy-data": "The certificates. Without them each start would ask for new ones, and there are few a week.",
        "stop_grace_period": service.sizing.why_grace,
        "bot-next": "Runs only while the bot is replaced; see above.",
    } | ({} if not service.records else {"recordings": "Calls as WAV files."})


def caddyfile(service: Service) -> str:
    """Return Caddy's configuration."""
    longest = shown(service.sizing.grace_s)
    return comment(
        "Made by `wsvoice deploy compose`. Certificates are made and renewed by themselves:\n"
        "https://caddyserver.com/docs/automatic-https"
    ) + (
        f"{service.host} {{\n"
        f"\treverse_proxy bot:{PORT} bot-next:{PORT} {{\n"
        "\t\t# The first of them that takes calls; one that drains says so at /readyz.\n"
        "\t\tlb_policy first\n"
        f"\t\tlb_try_duration {TRY_S}s\n"
        "\t\thealth_uri /readyz\n"
        f"\t\thealth_interval {HEALTH_INTERVAL_S}s\n"
        f"\t\thealth_timeout {HEALTH_INTERVAL_S}s\n"
        "\t\t# Calls go on when this file is loaded anew; Caddy before 2.7 does not know it, and cuts them off.\n"
        f"\t\tstream_close_delay {longest}\n"
        "\t}\n"
        "}\n"
    )
