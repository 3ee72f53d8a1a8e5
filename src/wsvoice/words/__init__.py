"""What was said, in words: who turns speech into them. What other layers import is here."""

from __future__ import annotations

from wsvoice.words.services import ServiceError, ask_service
from wsvoice.words.transcribers import Transcribe, load_transcriber

__all__ = ["ServiceError", "Transcribe", "ask_service", "load_transcriber"]
