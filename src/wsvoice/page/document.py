"""
The page: one HTML file with its scripts, its style, and its calls.

What a call holds is in the file as data only: as JSON in which ``<`` cannot occur, or packed in base64. The page's
scripts insert it as text. If one ever failed to, the page's policy would still allow no script but its own, whose
hashes it names, and no connection to anywhere.

https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from wsvoice.audio import compress
from wsvoice.errors import TraceError
from wsvoice.page.rows import BLOCK_ROWS, KINDS, TICKS, pack, pack_rows
from wsvoice.page.summary import Summary, summarize
from wsvoice.trace.sound import peaks

if TYPE_CHECKING:
    from wsvoice.trace import Trace

#: In the order in which they run.
SCRIPTS = ("wavesurfer/wavesurfer.min.js", "data.js", "player.js", "timeline.js", "rows.js", "page.js")
#: How much sound a page may hold, in bytes before base64, of all calls together.
AUDIO_LIMIT = 11_000_000
#: The longest call that a page shows.
MAX_HOURS = 12
#: How finely the waveforms are drawn: so many points a second, and in all.
PEAKS_PER_S, MAX_PEAKS = 1000, 400_000
#: How many points of the provider's buffer are drawn.
MAX_BUFFER_POINTS = 100_000


def render_page(traces: Sequence[Trace]) -> str:
    """
    Return the page of a call, or of two on one axis, as HTML.

    Raises:
        TraceError: If a call is longer than a page can show.
    """
    for trace in traces:
        lasts_h = max(len(trace.caller), len(trace.bot)) / trace.rate / 3600
        if lasts_h > MAX_HOURS:
            raise TraceError(
                f"{trace.path} lasts {lasts_h:.0f} hours, and a page shows up to {MAX_HOURS}",
                hint="--terminal shows calls of any length",
            )
    summaries = [summarize(trace) for trace in traces]
    duration_s = max(0.02, *(each.duration_s for each in summaries))
    rows = pack_rows(traces)
    data: dict[str, Any] = {
        "duration": duration_s,
        "ticks": TICKS,
        "blockRows": BLOCK_ROWS,
        "kinds": KINDS,
        "rows": rows.count,
        "calls": [_call(each, trace) for each, trace in zip(summaries, traces, strict=True)],
    }
    blobs = {"row-index": rows.index, "row-texts-0": rows.texts[0], "row-texts-1": rows.texts[1]}
    for number, trace in enumerate(traces):
        tracks = [trace.caller, trace.bot]
        length = round(duration_s * trace.rate)
        count = max(1, min(MAX_PEAKS, round(duration_s * PEAKS_PER_S)))
        blobs[f"peaks-{number}"] = pack(b"".join(peaks(track, count, length).tobytes() for track in tracks))
        sound = compress(tracks, trace.rate, length, limit=AUDIO_LIMIT // len(traces))
        data["calls"][number]["soundType"] = sound.media_type
        blobs[f"sound-{number}"] = base64.b64encode(sound.content).decode("ascii")
    return _assemble(json.dumps(data, separators=(",", ":")), blobs)


def _call(summary: Summary, trace: Trace) -> dict[str, Any]:
    """Return what the page says and draws of a whole call."""
    step = -(-len(summary.buffered) // MAX_BUFFER_POINTS) or 1
    return {
        "title": summary.title,
        "facts": summary.facts,
        "verdict": summary.verdict,
        "failure": summary.failure,
        "startedAt": trace.started_at,
        "duration": summary.duration_s,
        "isComplete": summary.is_complete,
        "caller": [(each.start_s, each.end_s) for each in summary.caller],
        "bot": [(each.start_s, each.end_s) for each in summary.bot],
        "turns": [(each.caller_start_s, each.caller_end_s, each.bot_s, each.wait_s) for each in summary.turns],
        "words": [(each.turn, each.who, each.at_s, each.text) for each in summary.words],
        "points": [(each.at_s, each.kind, each.text) for each in summary.points],
        "buffered": [(round(at_s, 3), round(ms)) for at_s, ms in summary.buffered[::step]],
        "findings": [(each.level, each.id, each.message, each.count) for each in summary.findings],
        "causes": summary.causes,
    }


def _assemble(data: str, blobs: dict[str, str]) -> str:
    style = _asset("theme.css") + _asset("page.css")
    scripts = [_asset(name) for name in SCRIPTS]
    # What wavesurfer.js writes into its shadow tree; scripts have none.
    nonce = hashlib.sha256(data.encode("ascii")).hexdigest()[:32]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)} 'nonce-{nonce}'",
            "media-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    held = [f'<script type="application/json" id="call" data-nonce="{nonce}">{_as_text(data)}</script>']
    held += [f'<script type="text/plain" id="{name}">{content}</script>' for name, content in blobs.items()]
    return Template(_asset("page.html")).substitute(
        policy=policy,
        style=style,
        data="\n".join(held),
        scripts="\n".join(f"<script>{each}</script>" for each in scripts),
    )


def _as_text(data: str) -> str:
    """Return JSON that no parser of HTML sees anything in: neither an end of its element nor a comment."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("wsvoice.page").joinpath("assets", name).read_text(encoding="utf-8")
