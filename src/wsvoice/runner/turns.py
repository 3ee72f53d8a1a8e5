"""How long the caller waited for each answer, what broke off within one, and how loud each end is; by sound alone."""

from __future__ import annotations

import math

from wsvoice.audio import AUDIBLE_LEVEL, dbfs, rms

#: A shorter pause in the bot's audio belongs to the same answer.
PAUSE_S = 0.5
#: A level is that of this many seconds, or of up to twice as many.
LEVEL_WINDOW_S = 0.5


class LevelMeter:
    """
    How loud one end has been within the last second.

    It adds up levels that are computed anyway; that takes about a tenth of a microsecond for each piece of audio.
    """

    __slots__ = ("_before", "_energy", "_size", "_until")

    def __init__(self) -> None:
        self._until = -math.inf
        self._energy = self._size = 0.0
        #: Energy and size of the window before this one.
        self._before = (0.0, 0.0)

    def note(self, level: float, size: int, now: float) -> None:
        """Note the level of a piece of audio, as :func:`~wsvoice.audio.rms` has it, and how many samples or bytes."""
        if now >= self._until:
            is_next = now < self._until + LEVEL_WINDOW_S
            self._before = (self._energy, self._size) if is_next else (0.0, 0.0)
            self._energy = self._size = 0.0
            self._until = now + LEVEL_WINDOW_S
        self._energy += level * level * size
        self._size += size

    def dbfs(self, now: float) -> float | None:
        """Return the level in dBFS; ``None`` for silence, or without audio. May be called from any thread."""
        age_s = now - self._until
        if age_s >= LEVEL_WINDOW_S:
            return None
        energy, size = self._energy, self._size
        if age_s < 0:
            energy, size = energy + self._before[0], size + self._before[1]
        return dbfs(math.sqrt(energy / size)) if energy > 0 else None


#: Telephones' jitter buffers hide shorter breaks, in seconds.
MIN_BREAK_S = 0.02
#: How much audio before a break says whether it was in the middle of a sound, in seconds.
_RECENT_S = 0.04


class TurnTimer:
    """
    Measures from the last sound of the caller to the next first sound of the bot.

    It measures energy instead of counting messages, because many bots send silence.
    """

    def __init__(self) -> None:
        #: When each end last made a sound.
        self.caller_sounded_at: float | None = None
        self.bot_sounded_at: float | None = None
        #: Seconds since the stream started until the bot's first sound.
        self.first_sound_at: float | None = None
        #: The caller's wait for each answer, in seconds, and when that began.
        self.responses_s: list[float] = []
        self.answered_at: list[float] = []
        #: How loud each end is.
        self.caller_level = LevelMeter()
        self.bot_level = LevelMeter()

    def caller(self, pcm: bytes, now: float) -> None:
        """Hear a piece of the caller's audio, s16le."""
        level = rms(pcm)
        self.caller_level.note(level, len(pcm), now)
        if level > AUDIBLE_LEVEL:
            self.caller_sounded_at = now

    def bot(self, pcm: bytes, now: float) -> bool:
        """Hear a piece of the bot's audio, s16le, as it is sent; true if it begins an answer."""
        level = rms(pcm)
        self.bot_level.note(level, len(pcm), now)
        if level <= AUDIBLE_LEVEL:
            return False
        if self.first_sound_at is None:
            self.first_sound_at = now
        last, self.bot_sounded_at = self.bot_sounded_at, now
        if last is not None and now - last < PAUSE_S:
            return False
        if self.caller_sounded_at is None or (last is not None and self.caller_sounded_at <= last):
            return False
        self.responses_s.append(now - self.caller_sounded_at)
        self.answered_at.append(now)
        return True


class Breaks:
    """
    Tells underruns: the provider's buffer ran empty in the middle of a sound of the bot's, because audio came too late.

    That is a break of :data:`MIN_BREAK_S` to :data:`PAUSE_S`, by the model of :class:`~wsvoice.runner.pacing.Pacer`,
    with sound right before it and more audio after it. A shorter one is not heard, a longer one separates utterances;
    after an interruption there is none, because the bot wanted to be cut off. ``wsvoice dial`` counts the same at the
    other end.
    """

    def __init__(self) -> None:
        self._last = b""

    def sent(self, pcm: bytes, empty_s: float, rate: int) -> bool:
        """
        Note a piece of the bot's audio; true if it comes after an underrun.

        Args:
            pcm: s16le.
            empty_s: How long the buffer had been empty until it was sent, in seconds.
            rate: Its sample rate in Hz.
        """
        last, self._last = self._last, pcm
        # Nothing but a comparison for a piece that is in time.
        return MIN_BREAK_S <= empty_s < PAUSE_S and rms(last[-2 * int(rate * _RECENT_S) :]) > AUDIBLE_LEVEL

    def cleared(self) -> None:
        """Note that the provider was told to forget the audio that it has."""
        self._last = b""
