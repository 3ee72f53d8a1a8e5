"""
The speech-to-speech model that the bot hears, thinks and speaks with.

To change it, change its name here, and pipecat's extra in pyproject.toml. Each function makes a service for one call;
https://docs.pipecat.ai/api-reference/server/services/supported-services lists more under "Speech-to-Speech".
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from loguru import logger
from pipecat.services.llm_service import LLMService

LLM = "openai"

#: Where each company's key is.
KEYS = {
    "gemini": "GOOGLE_API_KEY",
    "openai": "OPENAI_API_KEY",
}


def create(instructions: str) -> LLMService:
    """Return the service for one call."""
    if use_fakes():
        return load_fakes().create(instructions)
    return LANGUAGE_MODEL[LLM](instructions)


def check() -> None:
    """Look for the key, and end the program if it is missing."""
    if use_fakes():
        logger.warning("the service is a fake (BOT_FAKES)")
        # Now rather than in the first call, which would wait for it.
        load_fakes()
    elif is_key_missing():
        # Not an error of the program's, so without a traceback.
        sys.exit(f"{KEYS[LLM]} must be set, in .env for example; BOT_FAKES=1 does without")


def load_fakes() -> ModuleType:
    """Return tests/fakes.py."""
    folder = str(Path(__file__).parent / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("fakes")


def use_fakes() -> bool:
    """Return whether BOT_FAKES asks for a fake: `1` always, `auto` where the key is missing."""
    wanted = os.environ.get("BOT_FAKES", "")
    return is_key_missing() if wanted == "auto" else wanted not in ("", "0")


def is_key_missing() -> bool:
    return not os.environ.get(KEYS[LLM])


# Every import of a service stands in its function: only the chosen one has to be installed.


def llm_gemini(instructions: str) -> LLMService:
    from pipecat.services.google.gemini_live.llm import GeminiLiveLLMService

    settings = GeminiLiveLLMService.Settings(voice="Charon", system_instruction=instructions)
    return GeminiLiveLLMService(api_key=os.environ[KEYS["gemini"]], settings=settings)


def llm_openai(instructions: str) -> LLMService:
    from pipecat.services.openai.realtime.events import (
        AudioConfiguration,
        AudioInput,
        AudioOutput,
        InputAudioTranscription,
        SemanticTurnDetection,
        SessionProperties,
    )
    from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

    audio = AudioConfiguration(
        # The transcription is for the log only; the model hears the caller itself.
        input=AudioInput(transcription=InputAudioTranscription(), turn_detection=SemanticTurnDetection()),
        output=AudioOutput(voice="marin"),
    )
    settings = OpenAIRealtimeLLMService.Settings(
        system_instruction=instructions, session_properties=SessionProperties(audio=audio)
    )
    return OpenAIRealtimeLLMService(api_key=os.environ[KEYS["openai"]], settings=settings)


LANGUAGE_MODEL = {
    "gemini": llm_gemini,
    "openai": llm_openai,
}
