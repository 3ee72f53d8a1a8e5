"""Carries out what an account's operations ask for, over the network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from time import time
from typing import TypeVar
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.errors import ApiError, HttpError
from wsvoice.providers.account import ApiResponse, Steps

ResultT = TypeVar("ResultT")

#: How long the API may take for one answer.
TIMEOUT_S = 10.0
#: How often a request is repeated that came too early, and for how long at most its turn is waited for.
MAX_RETRIES, MAX_WAIT_S = 3, 30.0
#: How long is waited where ``Retry-After`` is missing.
USUAL_WAIT_S = 1.0


async def carry_out(
    steps: Steps[ResultT], *, timeout_s: float = TIMEOUT_S, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> ResultT:
    """
    Carry out an operation of an account's, and return its result.

    A request that the company puts off (429) is repeated when it says, unless that is too late.

    Args:
        timeout_s: For each request.
        sleep: Waits so many seconds.

    Raises:
        ApiError: If the company refuses it; of kind ``unreachable`` if it gives no answer.
    """
    try:
        request = next(steps)
        while True:
            retries = 0
            while True:
                try:
                    answer = await http.send(request, timeout_s=timeout_s)
                except HttpError as error:
                    host = urlsplit(request.url).netloc.rpartition("@")[2]
                    raise ApiError(
                        "unreachable",
                        f"the API at {host} cannot be reached: {error.message}",
                        hint="check this machine's network; the company's status page tells of its own troubles",
                    ) from error
                wait_s = _retry_after_s(answer) if answer.status == 429 else None
                if wait_s is None or wait_s > MAX_WAIT_S or retries >= MAX_RETRIES:
                    break
                retries += 1
                await sleep(wait_s)
            request = steps.send(ApiResponse(answer.status, answer.headers, answer.body))
    except StopIteration as end:
        result: ResultT = end.value
        return result
    finally:
        steps.close()


def _retry_after_s(answer: http.HttpResponse) -> float:
    """
    Return for how long the company wants to be left alone: a number of seconds, or a date.

    https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    written = answer.headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit():
        return float(written[:9])
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return USUAL_WAIT_S
