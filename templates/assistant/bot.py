"""
A telephone assistant: it listens, thinks and speaks.

What it says is in this file, which services it uses in services.py.
"""

import asyncio
import os

import wsvoice
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import EndWorkerFrame, FunctionCallResultProperties, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.services.llm_service import FunctionCallParams
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

import services

GREETING = "Hello! How can I help you?"
STILL_THERE = "Are you still there?"
SORRY = "I am sorry, something went wrong here. Please say that again."
GOODBYE = "Thank you for calling. Goodbye!"

INSTRUCTIONS = """
You are a friendly assistant on the telephone. Answer in one to three short sentences.
What you write is spoken aloud: no lists, no markup, no emojis; write numbers and abbreviations as one says them.
What the caller said was written down by a machine. Where it makes no sense, ask.
When the caller says goodbye or wants nothing more, call end_call and say nothing yourself.
"""

#: How long the caller may be silent before the bot asks, and again before it hangs up.
IDLE_S = float(os.environ.get("BOT_IDLE_S") or 8)

# A missing key should stop the server when it starts, not the first call.
services.check()


async def end_call(params: FunctionCallParams) -> None:
    """Say goodbye to the caller and hang up."""
    await params.result_callback({"ended": True}, properties=FunctionCallResultProperties(run_llm=False))
    # In this order: the goodbye is heard to its end before the call ends.
    await params.llm.push_frame(TTSSpeakFrame(GOODBYE))
    await params.llm.push_frame(EndWorkerFrame())


def load_turn_models() -> tuple[SileroVADAnalyzer, UserTurnStrategies]:
    """Load what hears whether the caller speaks, and whether a sentence is complete."""
    return SileroVADAnalyzer(), UserTurnStrategies()


async def bot(runner_args: wsvoice.CallArguments) -> None:
    """Handle one call, from the first ring to the hang-up."""
    transport = runner_args.transport
    call = runner_args.call
    logger.info("{} calls {}", call.from_number, call.to_number)

    # In a thread: loading takes half a second, in which other calls' audio would stall.
    vad, turns = await asyncio.to_thread(load_turn_models)
    stt, llm, tts = services.create(INSTRUCTIONS)

    context = LLMContext(tools=[end_call])
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(vad_analyzer=vad, user_turn_strategies=turns, user_idle_timeout=IDLE_S),
    )
    worker = PipelineWorker(
        # The assistant's side comes last, so that the context holds what the caller has heard, not what was written.
        Pipeline([transport.input(), stt, user, llm, tts, transport.output(), assistant]),
        params=PipelineParams(enable_metrics=True),
    )
    asked = False

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        await worker.queue_frame(TTSSpeakFrame(GREETING))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    @worker.event_handler("on_pipeline_error")
    async def on_pipeline_error(worker, error):
        # Nobody should hear silence because the model is down. Without its voice, the bot cannot say anything.
        if error.processor is llm:
            await worker.queue_frame(TTSSpeakFrame(SORRY))

    @user.event_handler("on_user_turn_started")
    async def on_user_turn_started(user, strategy):
        nonlocal asked
        asked = False

    @user.event_handler("on_user_turn_idle")
    async def on_user_turn_idle(user):
        nonlocal asked
        if asked:
            await worker.queue_frames([TTSSpeakFrame(GOODBYE), EndWorkerFrame()])
        else:
            asked = True
            await worker.queue_frame(TTSSpeakFrame(STILL_THERE))

    @user.event_handler("on_user_turn_stopped")
    async def on_user_turn_stopped(user, strategy, message):
        logger.info("caller: {}", message.content)

    @assistant.event_handler("on_assistant_turn_stopped")
    async def on_assistant_turn_stopped(assistant, message):
        logger.info("bot: {}", message.content)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
