"""
The services that the bot hears, thinks and speaks with.

To change one, change its name here, and pipecat's extra of that name in pyproject.toml. Each function makes a
service for one call; https://docs.pipecat.ai/api-reference/server/services/supported-services lists many more.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from loguru import logger
from pipecat.services.llm_service import LLMService
from pipecat.services.stt_service import STTService
from pipecat.services.tts_service import TTSService

STT = "deepgram"
LLM = "openai"
TTS = "cartesia"

#: Where each company's key is.
KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "assemblyai": "ASSEMBLYAI_API_KEY",
    "cartesia": "CARTESIA_API_KEY",
    "deepgram": "DEEPGRAM_API_KEY",
    "elevenlabs": "ELEVENLABS_API_KEY",
    "google": "GOOGLE_API_KEY",
    "groq": "GROQ_API_KEY",
    "openai": "OPENAI_API_KEY",
}


def create(instructions: str) -> tuple[STTService, LLMService, TTSService]:
    """Return the three services for one call."""
    if use_fakes():
        return load_fakes().create(instructions)
    return SPEECH_TO_TEXT[STT](), LANGUAGE_MODEL[LLM](instructions), TEXT_TO_SPEECH[TTS]()


def check() -> None:
    """Look for the keys, and end the program if one is missing that is needed."""
    if use_fakes():
        logger.warning("the services are fakes (BOT_FAKES)")
        # Now rather than in the first call, which would wait for it.
        load_fakes()
    elif missing := missing_keys():
        # Not an error of the program's, so without a traceback.
        sys.exit(f"{' and '.join(missing)} must be set, in .env for example; BOT_FAKES=1 does without")


def load_fakes() -> ModuleType:
    """Return tests/fakes.py."""
    folder = str(Path(__file__).parent / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("fakes")


def use_fakes() -> bool:
    """Return whether BOT_FAKES asks for fakes: `1` always, `auto` where a key is missing."""
    wanted = os.environ.get("BOT_FAKES", "")
    return bool(missing_keys()) if wanted == "auto" else wanted not in ("", "0")


def missing_keys() -> list[str]:
    return sorted({KEYS[name] for name in (STT, LLM, TTS) if not os.environ.get(KEYS[name])})


def key(name: str) -> str:
    return os.environ[KEYS[name]]


# Every import of a service stands in its function: only the chosen ones have to be installed.


def stt_assemblyai() -> STTService:
    from pipecat.services.assemblyai.stt import AssemblyAISTTService

    return AssemblyAISTTService(api_key=key("assemblyai"))


def stt_cartesia() -> STTService:
    from pipecat.services.cartesia.stt import CartesiaSTTService

    return CartesiaSTTService(api_key=key("cartesia"))


def stt_deepgram() -> STTService:
    from pipecat.services.deepgram.stt import DeepgramSTTService

    return DeepgramSTTService(api_key=key("deepgram"))


def stt_openai() -> STTService:
    from pipecat.services.openai.stt import OpenAISTTService

    return OpenAISTTService(api_key=key("openai"))


def llm_anthropic(instructions: str) -> LLMService:
    from pipecat.services.anthropic.llm import AnthropicLLMService

    settings = AnthropicLLMService.Settings(system_instruction=instructions)
    return AnthropicLLMService(api_key=key("anthropic"), settings=settings)


def llm_google(instructions: str) -> LLMService:
    from pipecat.services.google.llm import GoogleLLMService

    settings = GoogleLLMService.Settings(system_instruction=instructions)
    return GoogleLLMService(api_key=key("google"), settings=settings)


def llm_groq(instructions: str) -> LLMService:
    from pipecat.services.groq.llm import GroqLLMService

    settings = GroqLLMService.Settings(system_instruction=instructions)
    return GroqLLMService(api_key=key("groq"), settings=settings)


def llm_openai(instructions: str) -> LLMService:
    from pipecat.services.openai.llm import OpenAILLMService

    settings = OpenAILLMService.Settings(system_instruction=instructions)
    return OpenAILLMService(api_key=key("openai"), settings=settings)


def tts_cartesia() -> TTSService:
    from pipecat.services.cartesia.tts import CartesiaTTSService

    # Listed with how they sound at https://play.cartesia.ai/voices
    settings = CartesiaTTSService.Settings(voice="86e30c1d-714b-4074-a1f2-1cb6b552fb49")
    return CartesiaTTSService(api_key=key("cartesia"), settings=settings)


def tts_deepgram() -> TTSService:
    from pipecat.services.deepgram.tts import DeepgramTTSService

    settings = DeepgramTTSService.Settings(voice="aura-2-helena-en")
    return DeepgramTTSService(api_key=key("deepgram"), settings=settings)


def tts_elevenlabs() -> TTSService:
    from pipecat.services.elevenlabs.tts import ElevenLabsTTSService

    # Listed with how they sound at https://elevenlabs.io/app/voice-library
    settings = ElevenLabsTTSService.Settings(voice="JBFqnCBsd6RMkjVDRZzb")
    return ElevenLabsTTSService(api_key=key("elevenlabs"), settings=settings)


def tts_openai() -> TTSService:
    from pipecat.services.openai.tts import OpenAITTSService

    settings = OpenAITTSService.Settings(voice="alloy")
    return OpenAITTSService(api_key=key("openai"), settings=settings)


SPEECH_TO_TEXT = {
    "assemblyai": stt_assemblyai,
    "cartesia": stt_cartesia,
    "deepgram": stt_deepgram,
    "openai": stt_openai,
}
LANGUAGE_MODEL = {
    "anthropic": llm_anthropic,
    "google": llm_google,
    "groq": llm_groq,
    "openai": llm_openai,
}
TEXT_TO_SPEECH = {
    "cartesia": tts_cartesia,
    "deepgram": tts_deepgram,
    "elevenlabs": tts_elevenlabs,
    "openai": tts_openai,
}
