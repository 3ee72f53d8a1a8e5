"""The whole command against a server behind a tunnel, by which all that it looks at in public comes and goes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor.company import CREDENTIALS, NUMBER, listening_api
from tests.environment import clean_environ
from tests.phone.public_network import PublicNetwork
from tests.process import ServerProcess, server_process
from tests.providers.fake_accounts import Api

HOST = "calm-fox.ngrok-free.app"
ECHO = Path(__file__).parents[2] / "examples" / "echo.py"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[PublicNetwork]:
    network = PublicNetwork(tmp_path)
    yield network
    network.close()


def doctor(server: ServerProcess, folder: Path, environ: dict[str, str]) -> tuple[int, list[str]]:
    """Return the exit code, and what is printed of what is wrong."""
    command = [sys.executable, "-m", "wsvoice", "doctor", "--port", str(server.port), "--no-call", "-q"]
    done = subprocess.run(
        command, env=clean_environ(**environ), cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr.splitlines()


def test_a_server_behind_a_tunnel_and_the_page_before_it(network: PublicNetwork, tmp_path: Path) -> None:
    network.tell(hosts=[HOST])
    api = Api("twilio", CREDENTIALS)
    api.account.add_number(NUMBER, VoiceUrl=f"https://{HOST}/")
    with listening_api(api) as url:
        own = {"TWILIO_API_BASE_URL": url, "TWILIO_PHONE_NUMBER": NUMBER, "WSVOICE_STATE_DIR": str(tmp_path / "state")}
        environ = {**network.environ(), **CREDENTIALS, **own, "VIRTUAL_ENV": sys.prefix}
        with server_process(tmp_path, str(ECHO), "-t", "twilio", "--tunnel", "ngrok", **environ) as server:
            assert doctor(server, tmp_path, environ) == (0, ["nothing is wrong"])
            network.tell(hosts=[HOST], warns=True)
            code, lines = doctor(server, tmp_path, environ)
    assert code == 1
    assert lines[0].endswith(f"{HOST} answers 200, and it is not the bot: ngrok-error-code ERR_NGROK_6024")
    assert lines[1].endswith("hint: ngrok says ERR_NGROK_6024: https://ngrok.com/docs/errors/err_ngrok_6024")
