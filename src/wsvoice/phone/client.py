"""Carries out what an account's operations ask for, over the network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from math import ceil
from time import time
from typing import TypeVar
from urllib.parse import urlsplit

from loguru import logger

from wsvoice import http
from wsvoice.errors import ApiError, HttpError
from wsvoice.providers.account import ApiResponse, Steps
from wsvoice.providers.base import HttpRequest

ResultT = TypeVar("ResultT")

#: How long the API may take for one answer.
TIMEOUT_S = 10.0
#: How often a request is repeated that came too early, and how long is waited for that in one operation at most.
MAX_RETRIES, MAX_WAIT_S = 3, 30.0
#: How long is waited where ``Retry-After`` is missing.
USUAL_WAIT_S = 1.0


async def carry_out(
    steps: Steps[ResultT],
    *,
    timeout_s: float = TIMEOUT_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_wait: Callable[[str], None] = logger.info,
) -> ResultT:
    """
    Carry out an operation of an account's, and return its result.

    A request that the company puts off (429) is repeated when it says, unless that is too late.

    Args:
        timeout_s: For each request.
        sleep: Waits so many seconds.
        on_wait: Told before it waits, in one line.

    Raises:
        ApiError: If the company refuses it; of kind ``unreachable`` if it gives no answer.
    """
    left_s = MAX_WAIT_S
    try:
        request = next(steps)
        while True:
            answer = await _send(request, timeout_s)
            for _ in range(MAX_RETRIES):
                asked_s = _retry_after_s(answer) if answer.status == 429 else None
                wait_s = USUAL_WAIT_S if asked_s is None else asked_s
                if answer.status != 429 or wait_s > left_s:
                    break
                left_s -= wait_s
                on_wait(f"the API at {_host(request)} takes no request now; it is repeated in {wait_s:.3g} s")
                await sleep(wait_s)
                answer = await _send(request, timeout_s)
            try:
                request = steps.send(ApiResponse(answer.status, answer.headers, answer.body))
            except ApiError as error:
                if error.kind == "rate-limit" and (asked_s := _retry_after_s(answer)) is not None:
                    error.retry_after_s = asked_s
                    error.hint = f"it asks to wait {ceil(asked_s)} s; repeat it then"
                raise
    except StopIteration as end:
        result: ResultT = end.value
        return result
    finally:
        steps.close()


async def _send(request: HttpRequest, timeout_s: float) -> http.HttpResponse:
    try:
        return await http.send(request, timeout_s=timeout_s)
    except HttpError as error:
        raise ApiError(
            "unreachable",
            f"the API at {_host(request)} cannot be reached: {error.message}",
            hint="check this machine's network; the company's status page tells of its own troubles",
        ) from error


def _host(request: HttpRequest) -> str:
    return urlsplit(request.url).netloc.rpartition("@")[2]


def _retry_after_s(answer: http.HttpResponse) -> float | None:
    """
    Return for how long the company wants to be left alone, told by a number of seconds or a date; ``None`` if untold.

    https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    written = answer.headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit():
        return float(written[:9])
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
