"""
A fake of the model, for calls without keys: pipecat's own OpenAI Realtime service, and an OpenAI that is not there.

What stands in for OpenAI is a small server on this machine. It tells from the length of the sound which recording of
this folder the caller has played, answers every question alike, ends the call at a goodbye, and speaks in tones.
Put a recording into RECORDINGS, and its answer into :meth:`Conversation.answer`, to test one of your own.
"""

import base64
import itertools
import json
import threading
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from websockets.sync.server import ServerConnection, serve

#: What is said in the recordings, which eSpeak NG has spoken.
RECORDINGS = {
    "question.wav": "Hello, can you hear me and tell me what you can do?",
    "goodbye.wav": "Thank you, goodbye.",
}
ANSWER = "I can hear you well. I answer questions, take messages and make appointments. What would you like me to do?"

#: Samples a second, both ways: https://platform.openai.com/docs/api-reference/realtime-client-events/session/update
RATE = 24_000
MS_PER_CHARACTER = 45
#: A sound is speech if it is as loud as this; words less than that apart are one turn.
LOUD = 500
SPEECH_MS = 100
SILENCE_MS = 500


def create(instructions: str) -> OpenAIRealtimeLLMService:
    """Return the service for one call."""
    settings = OpenAIRealtimeLLMService.Settings(system_instruction=instructions)
    return OpenAIRealtimeLLMService(api_key="none", base_url=server_url(), settings=settings)


class Ears:
    """Hears in a stream of samples where the caller begins and stops to speak."""

    def __init__(self, on_start: Callable[[], None], on_stop: Callable[[float], None]) -> None:
        self._on_start = on_start
        self._on_stop = on_stop
        self._now = 0
        self._first: int | None = None
        self._last = 0
        self._speaking = False

    def hear(self, samples: np.ndarray) -> None:
        loud = np.flatnonzero(np.abs(samples.astype(int)) > LOUD)
        if len(loud):
            if self._first is None:
                self._first = self._now + int(loud[0])
            self._last = self._now + int(loud[-1])
        self._now += len(samples)
        if self._first is None:
            return
        if not self._speaking and self._last - self._first >= RATE * SPEECH_MS // 1000:
            self._speaking = True
            self._on_start()
        if self._now - self._last >= RATE * SILENCE_MS // 1000:
            if self._speaking:
                self._on_stop((self._last - self._first) / RATE)
            self._first, self._speaking = None, False


class Conversation:
    """One session of the API: https://platform.openai.com/docs/api-reference/realtime-server-events"""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self._ids = (f"id_{number}" for number in itertools.count())
        self._ears = Ears(self.note_start, self.note_stop)
        # What was put into the conversation last.
        self._item: dict[str, Any] = {}

    def run(self) -> None:
        self.send("session.created", session={})
        for message in self._socket:
            event = json.loads(message)
            if event["type"] == "input_audio_buffer.append":
                self._ears.hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
            elif event["type"] == "session.update":
                self.send("session.updated", session={})
            elif event["type"] == "conversation.item.create":
                self._item = event["item"]
                self.send("conversation.item.added", item=self._item)
            elif event["type"] == "response.create":
                self.respond()

    def answer(self) -> str | None:
        """Return what the model says to the last item; ``None`` if it ends the call instead."""
        if self._item["type"] == "function_call_output":
            return "Thank you for calling. Goodbye!"
        said = self._item["content"][0]
        if "transcript" not in said:
            return "Hello, are you there?"
        return None if "goodbye" in said["transcript"] else ANSWER

    def note_start(self) -> None:
        self.send("input_audio_buffer.speech_started", audio_start_ms=0, item_id="speech")

    def note_stop(self, length_s: float) -> None:
        """Answer the caller, who has spoken for so long."""
        self.send("input_audio_buffer.speech_stopped", audio_end_ms=0, item_id="speech")
        name = min(RECORDINGS, key=lambda name: abs(length_s - recording_s(name)))
        content = [{"type": "input_audio", "transcript": RECORDINGS[name]}]
        self._item = {"id": next(self._ids), "type": "message", "role": "user", "content": content}
        self.send("conversation.item.added", item=self._item)
        self.send(
            "conversation.item.input_audio_transcription.completed",
            item_id=self._item["id"],
            content_index=0,
            transcript=RECORDINGS[name],
        )
        self.respond()

    def respond(self) -> None:
        response_id, item_id = next(self._ids), next(self._ids)
        part = {"response_id": response_id, "item_id": item_id, "output_index": 0}
        self.send("response.created", response={"id": response_id, "status": "in_progress"})
        text = self.answer()
        if text is None:
            item = {"id": item_id, "type": "function_call", "name": "end_call", "call_id": item_id, "arguments": ""}
            self.send("conversation.item.added", item=item)
            self.send("response.function_call_arguments.done", **part, call_id=item_id, arguments="{}")
        else:
            item = {"id": item_id, "type": "message", "role": "assistant", "content": []}
            self.send("conversation.item.added", item=item)
            self.send("response.output_audio_transcript.delta", **part, content_index=0, delta=text)
            audio = base64.b64encode(speak(text)).decode()
            self.send("response.output_audio.delta", **part, content_index=0, delta=audio)
        self.send("response.done", response={"id": response_id, "status": "completed", "output": [item]})

    def send(self, kind: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"event_id": next(self._ids), "type": kind, **fields}))


@cache
def recording_s(name: str) -> float:
    """Return the seconds from the first sound to the last in a recording."""
    with wave.open(str(Path(__file__).parent / name)) as wav:
        samples, rate = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(int), wav.getframerate()
    return float(np.ptp(np.flatnonzero(np.abs(samples) > LOUD))) / rate


def speak(text: str) -> bytes:
    """Return a tone that lasts as long as `text` would, with a pause behind it."""
    seconds = np.arange(RATE * len(text) * MS_PER_CHARACTER // 1000) / RATE
    tone = 8000 * np.sin(2 * np.pi * 440 * seconds)
    return np.append(tone, np.zeros(RATE // 10)).astype("<i2").tobytes()


@cache
def server_url() -> str:
    """Start the server, once in this process, and return its address."""
    server = serve(lambda socket: Conversation(socket).run(), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
