"""
Speaks the bot's prompts into prompts/*.wav: change the words below, then run `python make_prompts.py`.

It needs espeak-ng (`apt install espeak-ng`). Recordings of your own will do as well: WAV, mono, 16 bits, 8000 Hz.
"""

import io
import subprocess
import wave
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "prompts"
RATE = 8000  # the telephone's

WORDS = {
    "welcome": "Welcome.",
    "menu": "Press 1 for our hours, 2 for our address.",
    "more": "Star repeats, hash ends.",
    "hours": "We are open from nine to five, Monday to Friday.",
    "address": "You will find us at twelve, Station Road.",
    "wrong": "Sorry, there is no such choice.",
    "keys": "Please use the keys of your telephone.",
    "waiting": "Are you still there?",
    "goodbye": "Thank you for calling. Goodbye.",
}


def speak(words: str) -> bytes:
    """Return words as 16-bit mono samples at the telephone's rate, without the silence around them."""
    spoken = subprocess.run(
        ["espeak-ng", "-v", "en-us", "-s", "200", "--stdout", words], check=True, capture_output=True
    ).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        # What goes into a pipe has no length in its header; all of it is the prompt.
        samples = np.frombuffer(file.readframes(len(spoken) // 2), "<i2").astype(float)
        length = len(samples) * RATE // file.getframerate()
    # Without what is above the telephone's band, fewer samples tell the same.
    samples = np.fft.irfft(np.fft.rfft(samples)[: length // 2 + 1], length) * (length / len(samples))
    loud = np.flatnonzero(np.abs(samples) > 100)
    samples = samples[loud[0] : loud[-1] + RATE // 20]
    # Half of full scale leaves room for the telephone's codecs.
    scaled = samples * (16384 / np.abs(samples).max())
    return bytes(scaled.astype("<i2").tobytes())


def main() -> None:
    """Write every prompt."""
    FOLDER.mkdir(exist_ok=True)
    for name, words in WORDS.items():
        with wave.open(str(FOLDER / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(speak(words))


if __name__ == "__main__":
    main()
