"""A call's serializer: converts between a provider's messages and pipecat's frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.frames.frames import (
    AudioRawFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
)
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.serializers.base_serializer import FrameSerializer

from wsvoice.providers.events import Audio, Clear, Digit, Event
from wsvoice.runner.pipecat.resamplers import SteadyResampler

if TYPE_CHECKING:
    from wsvoice.providers.media_stream import Stream


class CallSerializer(FrameSerializer):
    """
    Translates between pipecat's frames and a provider's messages.

    The messages are the :class:`~wsvoice.providers.base.Stream`'s business; this adds the conversion between the wire's
    format and the pipeline's rate, which holds back a few milliseconds and loses nothing.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._in_rate = stream.format.sample_rate
        self._decoder: SteadyResampler | None = None
        self._encoder: SteadyResampler | None = None
        self._encoder_rate = 0

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Set the pipeline's input rate."""
        self.use_input_rate(setup.audio_in_sample_rate)

    def use_input_rate(self, sample_rate: int) -> None:
        """Decode the caller's audio to `sample_rate` Hz from now on."""
        if self._decoder is None or sample_rate != self._in_rate:
            self._in_rate = sample_rate
            self._decoder = SteadyResampler(self._stream.format.sample_rate, sample_rate)

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """Return the frame for a provider's message, or ``None``."""
        return self.frame(self._stream.receive(data))

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """Return the message for a frame, or ``None``."""
        if isinstance(frame, InterruptionFrame):
            return self._stream.send(Clear())
        if isinstance(frame, AudioRawFrame):
            payload = self._stream.outbound_format.encode(self.at_wire_rate(frame.audio, frame.sample_rate))
            return self._stream.send(Audio(payload)) if payload else None
        if isinstance(frame, (OutputTransportMessageFrame, OutputTransportMessageUrgentFrame)):
            return None if self.should_ignore_frame(frame) else json.dumps(frame.message)
        return None

    def frame(self, event: Event) -> Frame | None:
        """Return the frame for an event, or ``None``."""
        if isinstance(event, Audio):
            return self.audio_frame(self._stream.format.decode(event.payload))
        if isinstance(event, Digit):
            try:
                return InputDTMFFrame(KeypadEntry(event.digit))
            except ValueError:
                return None  # A to D, which pipecat's keypad lacks.
        return None

    def audio_frame(self, pcm: bytes) -> InputAudioRawFrame | None:
        """Return the frame for the caller's audio, s16le at the wire's rate; ``None`` if all is held back."""
        if self._decoder is not None:
            pcm = self._decoder.process(pcm)
        return InputAudioRawFrame(audio=pcm, sample_rate=self._in_rate, num_channels=1) if pcm else None

    def at_wire_rate(self, pcm: bytes, sample_rate: int) -> bytes:
        """Return s16le mono audio of `sample_rate` Hz at the wire's rate; a little is held back."""
        wire_rate = self._stream.outbound_format.sample_rate
        if sample_rate == wire_rate and self._encoder is None:
            return pcm
        tail = b""
        if self._encoder is None or sample_rate != self._encoder_rate:
            tail = self.flush()
            self._encoder = SteadyResampler(sample_rate, wire_rate)
            self._encoder_rate = sample_rate
        return tail + self._encoder.process(pcm)

    def flush(self) -> bytes:
        """Return what :meth:`at_wire_rate` has held back."""
        return self._encoder.flush() if self._encoder is not None else b""

    def forget(self) -> None:
        """Drop what :meth:`at_wire_rate` has held back."""
        if self._encoder is not None:
            self._encoder.reset()
