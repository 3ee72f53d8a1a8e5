"""A public address for a server on this machine: a tunnel, opened by ngrok's agent or by any command that opens one."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from copy import copy
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loguru import logger

from wsvoice.config import NGROK_TOKEN
from wsvoice.errors import ServerError
from wsvoice.phone.strays import Trace, end_strays

if TYPE_CHECKING:
    from pyngrok.log import NgrokLog
    from pyngrok.ngrok import NgrokTunnel as NgrokApiTunnel

#: How many characters of what a program says are repeated.
REASON_LIMIT = 300
#: How often ngrok's agent is started if it ends at once and it is not known why.
CONNECT_TRIES = 3
OWN_ADDRESS = "or bring your own address with -x DOMAIN"


class Tunnel(ABC):
    """
    A public address whose requests come to a port of this machine, from when it is made until it is closed.

    Its methods block, and are for one thread at a time; they have nothing to do with any event loop.

    Attributes:
        host: The public ``host[:port]``, which has TLS.
    """

    host: str = ""

    @abstractmethod
    def failure(self) -> str:
        """Return why it is down; empty while it is up, as far as this machine can tell."""

    @abstractmethod
    def reopen(self) -> str:
        """
        Open it again, and return its host, which may be another one.

        Raises:
            ServerError: If that fails; it is down then, and may be opened again later.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it, and end the program that held it open; nothing happens if it is closed."""


def open_tunnel(
    kind: str, port: int, *, domain: str | None = None, authtoken: str | None = None, state: Path | None = None
) -> Tunnel:
    """
    Open a tunnel to `port` on this machine.

    Args:
        kind: ``ngrok``, ``cloudflared``, or a command with ``{port}`` in it that prints an address.
        port: What requests are forwarded to, at ``localhost``.
        domain: A domain that is reserved at ngrok; any without it.
        authtoken: The token of the account at ngrok; without it, what the agent's own configuration says.
        state: The folder for state, where the program is noted, so that the next run ends it if this one is killed.

    Raises:
        ServerError: If it cannot be opened; nothing is left running then.
    """
    end_strays(state)
    if kind == "ngrok":
        return NgrokTunnel(port, domain=domain, authtoken=authtoken, state=state)
    from wsvoice.phone.tunnel_command import CommandTunnel

    return CommandTunnel(kind, port, state)


class NgrokTunnel(Tunnel):
    """
    A tunnel of ngrok's agent, which pyngrok finds or downloads.

    https://ngrok.com/docs/agent/
    """

    def __init__(self, port: int, *, domain: str | None, authtoken: str | None, state: Path | None = None) -> None:
        from pyngrok import conf

        # pyngrok logs as errors what the exception says too.
        logging.getLogger("pyngrok").setLevel(logging.CRITICAL)
        self._port = port
        self._domain = domain
        self._url = ""
        #: Whether the agent has said that it has the tunnel.
        self._was_listed = False
        self._last_error = ""
        self._settings = copy(conf.get_default())
        # Not as an option of the agent's, which everybody on this machine may read.
        self._token, self._settings.auth_token = authtoken or self._settings.auth_token, None
        self._state = state
        self._trace: Trace | None = None
        # Ctrl-C is for the server, which lets its calls finish.
        self._settings.start_new_session = True
        self._settings.log_event_callback = self._note_line
        self.reopen()

    def reopen(self) -> str:
        """Start the agent anew, and have it open the tunnel."""
        from pyngrok import ngrok
        from pyngrok.exception import PyngrokError
        from yaml import YAMLError

        self.close()
        self._was_listed, self._last_error = False, ""
        agent = Path(self._settings.ngrok_path)
        quiet: AbstractContextManager[object] = nullcontext()
        if not agent.exists():
            logger.info("ngrok's agent is not on this machine: it is downloaded to {}", agent)
            # A download writes its progress to stdout, which is for data.
            quiet = redirect_stdout(StringIO())
        try:
            with quiet, _token_in_environment(self._token):
                opened = self._connect()
        except (PyngrokError, YAMLError, OSError) as error:
            self.close()
            raise _refusal(error, self._domain) from error
        except BaseException:
            # Ctrl-C, while the agent starts.
            self.close()
            raise
        agent_pid = ngrok.get_ngrok_process(self._settings).proc.pid
        self._trace = Trace(self._state, agent_pid, agent.name)
        self._url = opened.public_url or ""
        self.host = urlsplit(self._url).netloc
        return self.host

    def _connect(self) -> NgrokApiTunnel:
        """
        Start the agent, and have it open the tunnel.

        pyngrok reads no further once the agent has ended, so it may miss why. Then it is tried again, for the reason.
        """
        from pyngrok import ngrok
        from pyngrok.exception import PyngrokNgrokError

        tries = 1
        while True:
            began = time.monotonic()
            try:
                return ngrok.connect(str(self._port), "http", pyngrok_config=self._settings, **self._options())
            except PyngrokNgrokError as error:
                is_slow = time.monotonic() - began >= self._settings.startup_timeout
                if error.ngrok_error or is_slow or tries >= CONNECT_TRIES:
                    raise
                tries += 1

    def _options(self) -> dict[str, Any]:
        """
        Return what the agent is told of the domain, in the form of its API that pyngrok uses.

        https://ngrok.com/docs/agent/config/v3/ and https://ngrok.com/docs/agent/config/v2/
        """
        if not self._domain:
            return {}
        return {"url": f"https://{self._domain}"} if self._settings.config_version == "3" else {"domain": self._domain}

    def failure(self) -> str:
        """Return whether the agent has ended, or has lost the tunnel."""
        from pyngrok import ngrok, process
        from pyngrok.exception import PyngrokError

        if not process.is_process_running(self._settings.ngrok_path):
            return f"ngrok's agent has ended{f': {self._last_error}' if self._last_error else ''}"
        try:
            hosts = {urlsplit(each.public_url or "").hostname for each in ngrok.get_tunnels(self._settings)}
        except (PyngrokError, OSError, ValueError) as error:
            # It may just be slow; whether the public address answers is looked at too.
            logger.debug("ngrok's agent does not say which tunnels it has: {}", error)
            return ""
        is_listed = urlsplit(self._url).hostname in hosts
        self._was_listed = self._was_listed or is_listed
        return "ngrok's agent no longer has the tunnel" if self._was_listed and not is_listed else ""

    def close(self) -> None:
        """Disconnect, and end the agent."""
        from pyngrok import ngrok
        from pyngrok.exception import PyngrokError

        url, self._url = self._url, ""
        if url:
            with suppress(PyngrokError, OSError, ValueError):
                ngrok.disconnect(url, self._settings)
        ngrok.kill(self._settings)
        if self._trace is not None:
            self._trace.remove()

    def _note_line(self, line: NgrokLog) -> None:
        token = self._token
        logger.debug("ngrok: {}", line.line.replace(token, "***") if token else line.line)
        if line.lvl in ("ERROR", "CRITICAL") and line.err:
            self._last_error = _first_line(line.err)


@contextmanager
def _token_in_environment(token: str | None) -> Iterator[None]:
    """
    Have programs that are started meanwhile find ngrok's token in their environment.

    https://ngrok.com/docs/using-ngrok-with/docker/
    """
    before = os.environ.get(NGROK_TOKEN)
    if token:
        os.environ[NGROK_TOKEN] = token
    try:
        yield
    finally:
        if before is not None:
            os.environ[NGROK_TOKEN] = before
        elif token:
            os.environ.pop(NGROK_TOKEN, None)


def _first_line(text: str) -> str:
    """Return the first line of what ngrok says, whose line breaks may be escaped."""
    first = re.split(r"\\r|\\n|[\r\n]", text.strip(), maxsplit=1)[0]
    # A list follows.
    return first.strip().removesuffix(" Either")[:REASON_LIMIT]


def _said_by_ngrok(error: Exception) -> str:
    """Return the text in which the agent's log, or its API's answer, says what went wrong."""
    body = getattr(error, "body", "")
    with suppress(ValueError, LookupError, TypeError):
        details = json.loads(body).get("details", {})
        return re.sub("^failed to start tunnel: ", "", str(details["err"]))
    return str(getattr(error, "ngrok_error", None) or error)


def _refusal(error: Exception, domain: str | None) -> ServerError:
    """Return the error for a failed agent, with a hint that fits."""
    from pyngrok.exception import PyngrokNgrokInstallError, PyngrokSecurityError
    from yaml import YAMLError

    said = _said_by_ngrok(error)
    reason = _first_line(said) or type(error).__name__
    if isinstance(error, PyngrokNgrokInstallError | PyngrokSecurityError):
        return ServerError(
            f"ngrok's agent could not be installed: {reason}",
            hint="check the network; or get the agent at https://ngrok.com/download, and set PYNGROK_NGROK_PATH to its"
            f" path; {OWN_ADDRESS}",
        )
    if isinstance(error, YAMLError):
        return ServerError(
            f"ngrok's configuration cannot be read: {reason}", hint="`ngrok config check` names the line; mend it there"
        )
    if isinstance(error, OSError):
        return ServerError(
            f"ngrok's agent could not be started: {reason}",
            hint=f"set PYNGROK_NGROK_PATH to the path of a working one; {OWN_ADDRESS}",
        )
    found = re.search(r"ERR_NGROK_\d+", said)
    code = found[0] if found else ""
    shown = f" ({code})" if code and code not in reason else ""
    return ServerError(f"ngrok did not open a tunnel: {reason}{shown}", hint=_hint(code, reason, domain, error))


# https://ngrok.com/docs/errors/
#: No token, a malformed or revoked one, an account that is not verified.
_TOKEN_ERRORS = frozenset({"ERR_NGROK_105", "ERR_NGROK_106", "ERR_NGROK_107", "ERR_NGROK_4018"})
#: As many agents as the account may have; an address that another agent has.
_SESSION_ERROR, _ONLINE_ERROR = "ERR_NGROK_108", "ERR_NGROK_334"
#: A domain that is not the account's.
_DOMAIN_ERRORS = re.compile(r"ERR_NGROK_(3\d\d|711[78])")


def _hint(code: str, reason: str, domain: str | None, error: Exception) -> str:
    if code == _SESSION_ERROR:
        return f"the account's agent runs elsewhere already: stop it there; {OWN_ADDRESS}"
    if code == _ONLINE_ERROR:
        return f"another agent has that address: stop it there, or name another one with --tunnel-domain; {OWN_ADDRESS}"
    if code in _TOKEN_ERRORS or (not code and "auth" in reason.lower()):
        return (
            "set NGROK_AUTHTOKEN to the token at https://dashboard.ngrok.com/get-started/your-authtoken, or run"
            f" `ngrok config add-authtoken …`; {OWN_ADDRESS}"
        )
    if domain and _DOMAIN_ERRORS.fullmatch(code):
        return f"reserve {domain} at https://dashboard.ngrok.com/domains, or leave --tunnel-domain out; {OWN_ADDRESS}"
    if code:
        return f"https://ngrok.com/docs/errors/{code.lower()} explains it; {OWN_ADDRESS}"
    if getattr(error, "status_code", None) == 404:
        return f"`ngrok update` brings an agent that knows the request; {OWN_ADDRESS}"
    return f"check the network, and that `ngrok http 7860` works by itself; {OWN_ADDRESS}"
