"""A public address for a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

from loguru import logger

from wsvoice.errors import ServerError


@contextmanager
def ngrok_tunnel(port: int) -> Iterator[str]:
    """
    Open an ngrok tunnel to `port` on this machine, and yield its public host.

    pyngrok finds or downloads the agent, and takes the account's token from ``NGROK_AUTHTOKEN`` or from the
    agent's own configuration.

    Raises:
        ServerError: If the agent cannot be started, or ngrok refuses.

    https://ngrok.com/docs/agent/
    """
    from pyngrok import conf, ngrok
    from pyngrok.exception import PyngrokError

    agent = Path(conf.get_default().ngrok_path)
    if not agent.exists():
        logger.info("ngrok's agent is not on this machine: it is downloaded to {}", agent)
    try:
        # A download writes its progress to stdout, which is for data.
        with redirect_stdout(StringIO()):
            tunnel = ngrok.connect(str(port), "http")
    except (PyngrokError, OSError) as error:
        raise _refusal(error) from error
    public_url = tunnel.public_url or ""
    try:
        yield urlsplit(public_url).netloc
    finally:
        with suppress(PyngrokError, OSError):
            ngrok.disconnect(public_url)
        ngrok.kill()


_OWN_ADDRESS = "or bring your own address with -x DOMAIN"


def _refusal(error: Exception) -> ServerError:
    """Return the error for a failed agent, with a hint that fits."""
    from pyngrok.exception import PyngrokNgrokInstallError, PyngrokSecurityError

    lines = str(getattr(error, "ngrok_error", None) or error).strip().splitlines()
    reason = lines[0][:300] if lines else type(error).__name__
    if isinstance(error, PyngrokNgrokInstallError | PyngrokSecurityError):
        return ServerError(
            f"ngrok's agent could not be installed: {reason}",
            hint="check the network; or get the agent at https://ngrok.com/download, and set PYNGROK_NGROK_PATH to its"
            f" path; {_OWN_ADDRESS}",
        )
    if isinstance(error, OSError):
        return ServerError(
            f"ngrok's agent could not be started: {reason}",
            hint=f"set PYNGROK_NGROK_PATH to the path of a working one; {_OWN_ADDRESS}",
        )
    code = getattr(error, "ngrok_error_code", None) or ""
    if code == "ERR_NGROK_108":
        hint = f"the account's agent runs elsewhere already: stop it there; {_OWN_ADDRESS}"
    elif code in _TOKEN_ERRORS or "auth" in reason.lower():
        hint = f"run `ngrok config add-authtoken …`, or set NGROK_AUTHTOKEN; {_OWN_ADDRESS}"
    elif code:
        hint = f"https://ngrok.com/docs/errors/{code.lower()} explains it; {_OWN_ADDRESS}"
    else:
        hint = f"check the network, and that `ngrok http 7860` works by itself; {_OWN_ADDRESS}"
    return ServerError(f"ngrok did not open a tunnel: {reason}", hint=hint)


# No token, a malformed or revoked one, an account that is not verified: https://ngrok.com/docs/errors/
_TOKEN_ERRORS = frozenset({"ERR_NGROK_105", "ERR_NGROK_106", "ERR_NGROK_107", "ERR_NGROK_4018"})
