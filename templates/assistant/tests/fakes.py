"""
Fakes of the services, for calls without keys: pipecat's own OpenAI services, and an OpenAI that is not there.

What stands in for OpenAI is a small server on this machine. It tells from the length of the sound which recording of
this folder the caller has played, answers every question alike, ends the call at a goodbye, and speaks in tones.
Put a recording into RECORDINGS, and its answer into :func:`answer`, to test a conversation of your own.
"""

import io
import json
import threading
import wave
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService

#: What is said in the recordings, which eSpeak NG has spoken.
RECORDINGS = {
    "question.wav": "Hello, can you hear me and tell me what you can do?",
    "goodbye.wav": "Thank you, goodbye.",
}
ANSWER = "I can hear you well. I answer questions, take messages and make appointments. What would you like me to do?"

#: OpenAI's speech has this rate: https://platform.openai.com/docs/guides/text-to-speech
SPEECH_RATE = 24_000
MS_PER_CHARACTER = 45


def create(instructions: str) -> tuple[OpenAISTTService, OpenAILLMService, OpenAITTSService]:
    """Return the three services for one call."""
    url = server_url()
    settings = OpenAILLMService.Settings(system_instruction=instructions)
    return (
        OpenAISTTService(api_key="none", base_url=url),
        OpenAILLMService(api_key="none", base_url=url, settings=settings),
        OpenAITTSService(api_key="none", base_url=url),
    )


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return what the model says to `request`, as the content of one choice."""
    asked = [message["content"] for message in request["messages"] if message["role"] == "user"]
    if asked and "goodbye" in asked[-1].lower():
        function = {"name": "end_call", "arguments": "{}"}
        return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
    return {"content": ANSWER}


def transcribe(recording: bytes) -> str:
    """Return what is said in a WAV file: the words of the recording that is sounding for as long."""
    length_s = sounding_s(recording)
    name = min(RECORDINGS, key=lambda name: abs(length_s - recording_s(name)))
    return RECORDINGS[name]


@cache
def recording_s(name: str) -> float:
    return sounding_s((Path(__file__).parent / name).read_bytes())


def sounding_s(recording: bytes) -> float:
    """Return the seconds from the first sound to the last in a WAV file of 16-bit samples."""
    with wave.open(io.BytesIO(recording)) as wav:
        samples, rate = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(int), wav.getframerate()
    sounding = np.flatnonzero(np.abs(samples) > 500)
    return float(np.ptp(sounding)) / rate if len(sounding) else 0.0


def speak(text: str) -> bytes:
    """Return a tone that lasts as long as `text` would, with a pause behind it."""
    seconds = np.arange(SPEECH_RATE * len(text) * MS_PER_CHARACTER // 1000) / SPEECH_RATE
    tone = 8000 * np.sin(2 * np.pi * 440 * seconds)
    return np.append(tone, np.zeros(SPEECH_RATE // 10)).astype("<i2").tobytes()


class FakeOpenAI(BaseHTTPRequestHandler):
    """The three endpoints that the services use: https://platform.openai.com/docs/api-reference"""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/audio/transcriptions":
            # The one file in a form of several parts.
            text = transcribe(body[body.index(b"RIFF") :])
            self.respond("application/json", [json.dumps({"text": text}).encode()])
        elif self.path == "/audio/speech":
            self.respond("audio/pcm", [speak(json.loads(body)["input"])])
        elif self.path == "/chat/completions":
            self.respond("text/event-stream", stream(answer(json.loads(body))))
        else:
            self.send_error(404)

    def respond(self, content_type: str, parts: Iterator[bytes] | list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the bot's log tells what was heard and said."""


def stream(delta: dict[str, Any]) -> Iterator[bytes]:
    """Return the events of a streamed completion: https://platform.openai.com/docs/api-reference/chat-streaming"""
    reason = "tool_calls" if "tool_calls" in delta else "stop"
    for choice in (
        {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": reason},
    ):
        chunk = {"id": "fake", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


@cache
def server_url() -> str:
    """Start the server, once in this process, and return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeOpenAI)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
