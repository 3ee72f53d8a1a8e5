"""
Modules that pipecat has moved, and the error of an application that imports one by its old name.

``import wsvoice`` changes nothing in pipecat; only ``wsvoice.install()`` and ``wsvoice run`` do. Until then an import
by an old name fails, and the error says what to do.
"""

from __future__ import annotations

import sys

#: Old names and new names.
MOVED = {
    "pipecat.transports.network.fastapi_websocket": "pipecat.transports.websocket.fastapi",
    "pipecat.transports.network.websocket_server": "pipecat.transports.websocket.server",
    "pipecat.transports.network.websocket_client": "pipecat.transports.websocket.client",
    "pipecat.transports.network.small_webrtc": "pipecat.transports.smallwebrtc.transport",
    "pipecat.transports.network.webrtc_connection": "pipecat.transports.smallwebrtc.connection",
    "pipecat.vad.silero": "pipecat.audio.vad.silero",
    "pipecat.vad.vad_analyzer": "pipecat.audio.vad.vad_analyzer",
}
#: The packages of the old names.
PACKAGES = frozenset(name.rpartition(".")[0] for name in MOVED)


class MovedModuleFinder:
    """Adds a hint to the error of an import that fails anyway: it comes last, when no other finder found a module."""

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        """Find nothing; raise :exc:`ModuleNotFoundError` for modules that pipecat has moved."""
        if fullname in PACKAGES:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: pipecat has moved what was in it. "
                "Call wsvoice.install() before this import, and the old names work",
                name=fullname,
            )


def install_finder() -> None:
    """Add the finder behind all others."""
    remove_finder()
    sys.meta_path.append(MovedModuleFinder)


def remove_finder() -> None:
    """Remove the finder."""
    if MovedModuleFinder in sys.meta_path:
        sys.meta_path.remove(MovedModuleFinder)
