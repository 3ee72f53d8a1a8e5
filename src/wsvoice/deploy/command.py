"""What is deployed, and the command line with which it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsvoice.deploy.sizing import LINGER_S, Sizing, shown

PORT = 7860
METRICS_PORT = 9090
#: What the server's metrics call the calls that run.
ACTIVE_CALLS = "wsvoice_active_calls"
#: The only folders that the process writes to, and the user that it runs as.
STATE_FOLDER, RECORDINGS_FOLDER, TEMPORARY_FOLDER = "/var/lib/wsvoice", "/recordings", "/tmp"
USER_ID = 10001


@dataclass(frozen=True, slots=True)
class Service:
    """
    A bot that is deployed.

    Attributes:
        bot: The bot as ``wsvoice run`` takes it, in the project's folder.
        name: What everything that belongs to it is called.
        host: Its public domain.
        transport: The provider, or ``websocket``; ``None`` for every provider whose secret is set.
        image: The reference of its container image; ``None`` for one that is built on the spot.
        sizing: Its numbers.
        workers: How many worker processes it has, as ``wsvoice run --workers`` takes it; 0 for none.
        records: Whether calls are recorded.
        variables: The names of the environment variables that it needs, which hold secrets.
    """

    bot: str
    name: str
    host: str
    transport: str | None = None
    image: str | None = None
    sizing: Sizing = field(default_factory=Sizing)
    workers: str = "0"
    records: bool = False
    variables: tuple[str, ...] = ()

    @property
    def is_called(self) -> bool:
        """Whether telephone companies call it; else its clients connect without one."""
        return self.transport != "websocket"


def command(service: Service) -> list[str]:
    """Return the command line with which it runs."""
    options = [f"--transport={service.transport}"] if service.transport else []
    options += [
        f"--proxy={service.host}",
        "--host=0.0.0.0",
        f"--port={PORT}",
        f"--workers={service.workers}",
    ]
    if service.sizing.calls is not None:
        options.append(f"--max-calls={service.sizing.calls}")
    if service.is_called:
        options.append(f"--max-call-time={shown(service.sizing.longest_call_s)}")
    options += [
        f"--drain-linger={shown(LINGER_S)}",
        f"--drain-timeout={shown(service.sizing.drain_s)}",
        f"--metrics-port={METRICS_PORT}",
        "--metrics-host=0.0.0.0",
        "--log-format=json",
    ]
    if service.records:
        options.append(f"--record={RECORDINGS_FOLDER}")
    # A bot whose name begins with a hyphen is no option.
    return ["wsvoice", "run", *options, *(["--"] if service.bot.startswith("-") else []), service.bot]


def environment() -> dict[str, str]:
    """Return the variables that every process has, none of which is a secret."""
    return {
        "WSVOICE_STATE_DIR": STATE_FOLDER,
        # For development only, and the image may have a pyproject.toml that says otherwise.
        "WSVOICE_RELOAD": "0",
        "WSVOICE_LIVE": "0",
        # Libraries keep what they download there; nothing else but the folder for state can be written to.
        "HOME": TEMPORARY_FOLDER,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def writable_folders(service: Service) -> dict[str, str]:
    """Return the folders that the process writes to, by the names of their volumes."""
    folders = {"state": STATE_FOLDER, "tmp": TEMPORARY_FOLDER}
    return folders | {"recordings": RECORDINGS_FOLDER} if service.records else folders


def without_variables(text: str) -> str:
    """Return `text` for a file in which ``$NAME`` and ``$(NAME)`` are replaced, so that it stays as it is."""
    return text.replace("$", "$$")
