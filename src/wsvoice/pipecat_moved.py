"""
Modules that pipecat has moved, and what an application is told that imports one by its old name.

``import wsvoice`` changes nothing in pipecat; only ``wsvoice.install()`` and ``wsvoice run`` do. An import that fails
all the same says so here.
"""

from __future__ import annotations

import sys

#: Where each module is now.
MOVED = {
    "pipecat.transports.network.fastapi_websocket": "pipecat.transports.websocket.fastapi",
    "pipecat.transports.network.websocket_server": "pipecat.transports.websocket.server",
    "pipecat.transports.network.websocket_client": "pipecat.transports.websocket.client",
    "pipecat.transports.network.small_webrtc": "pipecat.transports.smallwebrtc.transport",
    "pipecat.transports.network.webrtc_connection": "pipecat.transports.smallwebrtc.connection",
    "pipecat.vad.silero": "pipecat.audio.vad.silero",
    "pipecat.vad.vad_analyzer": "pipecat.audio.vad.vad_analyzer",
}
#: The packages that they were in.
PACKAGES = frozenset(name.rpartition(".")[0] for name in MOVED)


class MovedModuleFinder:
    """Adds what to do to the error of an import that fails anyway: it is asked when nothing else has found a module."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        """
        Find nothing.

        Raises:
            ModuleNotFoundError: For what pipecat has moved.
        """
        if fullname in PACKAGES:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: pipecat has moved what was in it. "
                "Call wsvoice.install() before this import, and the old names work",
                name=fullname,
            )


def install_finder() -> None:
    """Ask the finder for a module that nothing else has found."""
    remove_finder()
    sys.meta_path.append(MovedModuleFinder)


def remove_finder() -> None:
    """Leave imports as they are without it."""
    if MovedModuleFinder in sys.meta_path:
        sys.meta_path.remove(MovedModuleFinder)
