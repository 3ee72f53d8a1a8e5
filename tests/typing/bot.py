"""The public API as a user's type checker sees it; checked, and never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_type

from fastapi import APIRouter, FastAPI
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

import wsvoice
from wsvoice import Call, CallArguments, CallTransport, LiveCall, RunConfig, create_app, create_transport


async def bot(runner_args: CallArguments) -> None:
    call = runner_args.call
    assert_type(call, LiveCall)
    a_plain_call: Call = call
    assert_type(a_plain_call.call_id, str)
    assert_type(call.answered_by, Literal["human", "machine", "fax", "unknown"] | None)
    assert_type(call.from_number, str)
    assert_type(call.direction, Literal["inbound", "outbound"])
    assert_type(call.parameters, Mapping[str, str])
    assert_type(await call.hang_up(), None)
    assert_type(await call.transfer("+15551234567"), None)
    assert_type(await call.send_digits("12#"), None)

    transport = runner_args.transport
    assert_type(transport, CallTransport)
    a_pipecat_transport: FastAPIWebsocketTransport = transport
    assert_type(a_pipecat_transport.name, str)
    assert_type(transport.heard_ms, float)
    await transport.send_mark("greeting")

    worker = PipelineWorker(Pipeline([transport.input(), transport.output()]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()

    call.call_id = "CA1"  # type: ignore[misc]
    Call(provider="twilio")  # type: ignore[call-arg]
    Call(provider="twilio", call_id="CA1", direction="sideways")  # type: ignore[arg-type]
    await transport.send_mark(1)  # type: ignore[arg-type]


async def bot_for_any_runner(runner_args: CallArguments) -> None:
    transport = await create_transport(
        runner_args,
        {"twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True)},
    )
    assert_type(transport, BaseTransport)


def not_a_coroutine(runner_args: CallArguments) -> None: ...


async def bot_of_no_call() -> None: ...


config = RunConfig(transport="twilio", proxy="bot.example.com", verify="enforce", credentials={"TWILIO_AUTH_TOKEN": ""})
app = create_app(bot, config)
assert_type(app, FastAPI)
assert_type(config.public_url, str | None)
assert_type(wsvoice.__version__, str)
assert_type(wsvoice.create_app(bot_for_any_runner), FastAPI)
assert_type(wsvoice.create_router(bot, config), APIRouter)
assert_type(wsvoice.install(), tuple[str, ...])
assert_type(wsvoice.install(disabled=["old-params"]), tuple[str, ...])

create_app(not_a_coroutine)  # type: ignore[arg-type]
create_app(bot_of_no_call)  # type: ignore[arg-type]
RunConfig(verify="maybe")  # type: ignore[arg-type]
wsvoice.install(["old-params", 1])  # type: ignore[list-item]
wsvoice.install(disable=["old-params"])  # type: ignore[call-arg]
RunConfig(prot=8000)  # type: ignore[call-arg]
config.port = 8000  # type: ignore[misc]
