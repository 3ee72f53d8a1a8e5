"""
Stands in for cloudflared: a quick tunnel that really forwards, and says on stderr what cloudflared says.

https://developers.cloudflare.com/cloudflare-one/networks/connectors/cloudflare-tunnel/do-more-with-tunnels/trycloudflare/
"""

from __future__ import annotations

import sys
import threading

from tests.phone.forwarding import PublicAddress
from tests.phone.programs import Folder


def say(text: str) -> None:
    print(f"2026-01-01T00:00:00Z {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Carry out the command line."""
    folder, settings = Folder.found(), Folder.found().settings()
    say(
        "INF Thank you for trying Cloudflare Tunnel. Doing so, without a Cloudflare account, is a quick way to"
        " experiment and try it out. However, be aware that these account-less Tunnels have no uptime guarantee, are"
        " subject to the Cloudflare Online Services Terms of Use (https://www.cloudflare.com/website-terms/). If you"
        " intend to use Tunnels in production you should use a pre-created named tunnel by following:"
        " https://developers.cloudflare.com/cloudflare-one/connections/connect-apps"
    )
    say("INF Requesting new quick Tunnel on trycloudflare.com...")
    if settings["refuses"]:
        print(
            f'failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": {settings["refuses"]}',
            file=sys.stderr,
        )
        return 1
    folder.note(program="cloudflared")
    to = int(sys.argv[sys.argv.index("--url") + 1].rpartition(":")[2])
    host = f"calm-river-{folder.opened()}.trycloudflare.com"
    address = PublicAddress(folder.certificate, to)
    folder.note(program="cloudflared", url=f"https://{host}", port=address.port, to=to, arguments=sys.argv[1:])
    say("INF |  Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):  |")
    say(f"INF |  https://{host}  |")
    say("INF Registered tunnel connection connIndex=0 connection=0 event=0 ip=198.41.0.1 location=fra08 protocol=quic")
    threading.Event().wait()
    return 0
