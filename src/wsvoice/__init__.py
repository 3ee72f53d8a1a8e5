"""
The command line for telephone voice bots built on pipecat.

The public API is here. Each name is loaded when it is first used, because pipecat takes most of a second to import,
and ``wsvoice --help`` must not wait for it.
"""

from __future__ import annotations

from importlib import import_module

from wsvoice import pipecat_moved
from wsvoice._version import __version__

# Instead of typing's, which takes longer to import than this module, before which Ctrl-C is not handled.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wsvoice.call import Call
    from wsvoice.config import RunConfig
    from wsvoice.providers.base import CallUpdate
    from wsvoice.runner.live_call import LiveCall
    from wsvoice.runner.pipecat.call_arguments import CallArguments, create_transport
    from wsvoice.runner.pipecat.call_transport import CallTransport
    from wsvoice.runner.pipecat.patches import install
    from wsvoice.runner.routes import create_app, create_router

_PLACES = {
    "Call": "wsvoice.call",
    "CallArguments": "wsvoice.runner.pipecat.call_arguments",
    "CallUpdate": "wsvoice.providers.base",
    "LiveCall": "wsvoice.runner.live_call",
    "CallTransport": "wsvoice.runner.pipecat.call_transport",
    "RunConfig": "wsvoice.config",
    "create_app": "wsvoice.runner.routes",
    "create_router": "wsvoice.runner.routes",
    "create_transport": "wsvoice.runner.pipecat.call_arguments",
    "install": "wsvoice.runner.pipecat.patches",
}

__all__ = [
    "Call",
    "CallArguments",
    "CallTransport",
    "CallUpdate",
    "LiveCall",
    "RunConfig",
    "__version__",
    "create_app",
    "create_router",
    "create_transport",
    "install",
]

pipecat_moved.install_finder()

if not TYPE_CHECKING:  # A type checker would accept any name.

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(import_module(_PLACES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
