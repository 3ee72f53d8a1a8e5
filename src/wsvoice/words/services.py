"""
Services that speak OpenAI's API, as many others do: one that transcribes, and how any of them is asked.

https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

from __future__ import annotations

import asyncio
import io
import json
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.config import without_secrets
from wsvoice.errors import HttpError, WsvoiceError
from wsvoice.http import HttpResponse
from wsvoice.providers.base import HttpRequest

#: The model that a transcribing service is asked for unless another is named.
MODEL = "whisper-1"
#: How long a service may take to answer one request, in seconds.
TIMEOUT_S = 60.0


class ServiceError(WsvoiceError):
    """A service, or a transcriber, has failed."""


@dataclass(frozen=True)
class TranscribingService:
    """
    A transcriber behind a URL.

    Attributes:
        url: The service, without ``/audio/transcriptions``.
        model: The model that it is asked for.
        key: Its key; empty without.
    """

    url: str
    model: str
    key: str

    def __call__(self, pcm: bytes, sample_rate: int, language: str) -> str:
        """Return the words in `pcm`."""
        file = ("call.wav", _wav(pcm, sample_rate), "audio/wav")
        fields = {"model": self.model, "language": language, "response_format": "json"}
        parts = urlsplit(self.url)
        # Some services have their version in the query.
        url = parts._replace(path=f"{parts.path.rstrip('/')}/audio/transcriptions").geturl()
        request = http.multipart(url, fields, file)
        text = ask_service(request, self.key, "transcriber").get("text")
        if not isinstance(text, str):
            raise ServiceError(f"the transcriber at {without_secrets(request.url)} answered with no text")
        return text


def ask_service(request: HttpRequest, key: str, who: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """
    Send a request and return the JSON object that it is answered with.

    Args:
        request: The request.
        key: Goes with it as a bearer's token, unless it is empty.
        who: What messages call the service.
        timeout_s: How long the answer may take.

    Raises:
        ServiceError: If there is no answer, or another one.
    """
    if key:
        headers = {**request.headers, "Authorization": f"Bearer {key}"}
        request = HttpRequest(request.method, request.url, headers, request.body)
    url = without_secrets(request.url)
    try:
        response = _send(request, timeout_s)
    except HttpError as error:
        message = error.message.replace(request.url, url)
        raise ServiceError(f"the {who} cannot be asked: {message}") from error
    if response.status != 200:
        raise ServiceError(f"the {who} at {url} answered {response.status}: {_beginning(response.body)}")
    try:
        found = json.loads(response.body)
    except (ValueError, RecursionError):
        raise ServiceError(f"the {who} at {url} answered with no JSON: {_beginning(response.body)}") from None
    if not isinstance(found, dict):
        raise ServiceError(f"the {who} at {url} answered with no JSON object")
    return found


def _send(request: HttpRequest, timeout_s: float) -> HttpResponse:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(http.send(request, timeout_s=timeout_s))
    # In a thread of its own, because a test has an event loop here.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(http.send(request, timeout_s=timeout_s))).result()


def _beginning(body: bytes) -> str:
    return " ".join(body[:200].decode(errors="replace").split())


def _wav(pcm: bytes, sample_rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(pcm)
    return file.getvalue()
