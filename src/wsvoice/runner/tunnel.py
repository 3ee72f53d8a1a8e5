"""A public address for a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

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
    from pyngrok import ngrok
    from pyngrok.exception import PyngrokError

    try:
        tunnel = ngrok.connect(str(port), "http")
    except PyngrokError as error:
        reason = getattr(error, "ngrok_error", None) or str(error)
        reason = str(reason).strip().splitlines()[0][:300]
        hint = "run `ngrok config add-authtoken …`, or set NGROK_AUTHTOKEN; or bring your own address with -x DOMAIN"
        raise ServerError(f"ngrok did not open a tunnel: {reason}", hint=hint) from error
    except OSError as error:
        raise ServerError(
            f"ngrok could not be started: {error}", hint="or bring your own address with -x DOMAIN"
        ) from error
    public_url = tunnel.public_url or ""
    try:
        yield urlsplit(public_url).netloc
    finally:
        with suppress(PyngrokError, OSError):
            ngrok.disconnect(public_url)
        ngrok.kill()
