"""
A telephone bot of one model, which hears the caller's voice and answers with its own.

What it is told is in this file, which model it is in services.py.
"""

import os

import wsvoice
from loguru import logger
from pipecat.frames.frames import EndWorkerFrame, LLMMessagesAppendFrame, LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.runner import WorkerRunner

import services

INSTRUCTIONS = """
You are a friendly assistant on the telephone. Answer in one to three short sentences.
When the caller says goodbye or wants nothing more, call end_call, and say nothing before.
"""
GREET = "A caller is on the line. Greet them in one short sentence, and ask how you can help."
ASK = "The caller is silent. Ask in a few words whether they are still there."
SAY_GOODBYE = "The call ends now. Say goodbye in one short sentence."

#: How long the caller may be silent before the bot asks, and again before it hangs up.
IDLE_S = float(os.environ.get("BOT_IDLE_S") or 8)

# A missing key should stop the server when it starts, not the first call.
services.check()


async def bot(runner_args: wsvoice.CallArguments) -> None:
    """Handle one call, from the first ring to the hang-up."""
    transport = runner_args.transport
    call = runner_args.call
    logger.info("{} calls {}", call.from_number, call.to_number)

    asked = False
    ending = False

    async def end_call(params: FunctionCallParams) -> None:
        """End the call."""
        nonlocal ending
        ending = True
        await params.result_callback(SAY_GOODBYE)

    llm = services.create(INSTRUCTIONS)
    context = LLMContext([{"role": "developer", "content": GREET}], tools=[end_call])
    # The model's service says when the caller speaks; no voice detection of the bot's own is needed.
    user, assistant = LLMContextAggregatorPair(context, user_params=LLMUserAggregatorParams(user_idle_timeout=IDLE_S))
    worker = PipelineWorker(
        Pipeline([transport.input(), user, llm, transport.output(), assistant]),
        params=PipelineParams(enable_metrics=True),
    )

    async def tell(message: str) -> None:
        """Tell the model something that the caller does not hear, and have it speak."""
        # To the model itself: at the pipeline's start, the caller's side of the context would keep it to itself.
        await llm.queue_frame(LLMMessagesAppendFrame([{"role": "developer", "content": message}], run_llm=True))

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        await worker.queue_frame(LLMRunFrame())

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    @user.event_handler("on_user_turn_started")
    async def on_user_turn_started(user, strategy):
        nonlocal asked
        asked = False

    @user.event_handler("on_user_turn_idle")
    async def on_user_turn_idle(user):
        nonlocal asked, ending
        ending = asked
        asked = True
        await tell(SAY_GOODBYE if ending else ASK)

    @assistant.event_handler("on_assistant_turn_stopped")
    async def on_assistant_turn_stopped(assistant, message):
        logger.info("bot: {}", message.content)
        # What it has said last was the goodbye; it is heard to its end before the call ends.
        if ending and message.content:
            await worker.queue_frame(EndWorkerFrame())

    @user.event_handler("on_user_turn_message_added")
    async def on_user_turn_message_added(user, message):
        logger.info("caller: {}", message.content)

    @worker.event_handler("on_pipeline_error")
    async def on_pipeline_error(worker, error):
        # Without its model the bot has no voice: better an end than silence.
        if error.processor is llm:
            await worker.queue_frame(EndWorkerFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
