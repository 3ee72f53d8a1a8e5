"""
The services that the bot hears, thinks and speaks with, all of them on this machine.

Each can be replaced by another of pipecat's; in pyproject.toml, add the extra that it is listed with at
https://docs.pipecat.ai/api-reference/server/services/supported-services
"""

import os
from pathlib import Path

from pipecat.services.openai.llm import OpenAILLMService

from stt import PocketSphinxSTTService, read_phrases
from tts import EspeakTTSService

PHRASES = read_phrases(Path(__file__).with_name("phrases.txt"))

#: Where Ollama listens: https://docs.ollama.com/api/openai-compatibility
LLM_BASE_URL = "http://localhost:11434/v1"
LLM_MODEL = "llama3.2"


def create_stt() -> PocketSphinxSTTService:
    return PocketSphinxSTTService(phrases=PHRASES)


def create_llm(instructions: str) -> OpenAILLMService:
    """Return a client of a language model behind any server that speaks OpenAI's API."""
    return OpenAILLMService(
        base_url=os.environ.get("LLM_BASE_URL") or LLM_BASE_URL,
        # Most local servers ask for none, but the client insists on one.
        api_key=os.environ.get("LLM_API_KEY") or "none",
        settings=OpenAILLMService.Settings(
            model=os.environ.get("LLM_MODEL") or LLM_MODEL, system_instruction=instructions
        ),
    )


def create_tts() -> EspeakTTSService:
    return EspeakTTSService(voice="en-us")
