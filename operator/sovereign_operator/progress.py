# SPDX-License-Identifier: Apache-2.0
"""How far mirrors and fetches have come, asked from their pods: each at most every ten seconds, and never in
the way of anything.

Status is written from this value, so its pace bounds the pace of status writes too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp

from sovereign_operator.indices import Key
from sovereign_operator.values import FetchProgress, MirrorProgress

PORT: Final = 8090
INTERVAL_SECONDS: Final = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_MAX_BYTES: Final = 16 * 1024
# Pods of fetches that are asked for one look; the rest waits for the next one.
MOST_PODS: Final = 16
# What one pod can say, in bytes a petabyte: status is an int64, and holds the sum over thousands of nodes.
MOST_BYTES: Final = 2**50
# A pod that nobody asked about for so long has ended.
FORGOTTEN_SECONDS: Final = 600.0


@dataclass(slots=True)
class _Reading:
    """What a fetch pod said last, and when it was asked."""

    asked: float
    answered: float = 0.0
    said: FetchProgress | None = None


class ProgressReader:
    """The last answer per model, and per pod of fetches; a pod that does not answer leaves it as it is."""

    def __init__(self, session: aiohttp.ClientSession, port: int = PORT) -> None:
        self._session = session
        self._port = port
        self._last: dict[Key, tuple[float, MirrorProgress | None]] = {}
        self._readings: dict[str, _Reading] = {}  # by the pod's uid

    async def of(self, key: Key, pods: tuple[Mapping[str, Any], ...]) -> MirrorProgress | None:
        """Progress of the model's running mirror pod, None while there is none."""
        address = next(filter(None, (_address(pod) for pod in pods)), None)
        if address is None:
            self._last.pop(key, None)
            return None
        now = asyncio.get_running_loop().time()
        asked, known = self._last.get(key, (-INTERVAL_SECONDS, None))
        if now - asked >= INTERVAL_SECONDS:
            known = await self._ask(address) or known
            self._last[key] = (now, known)
        return known

    def forget(self, key: Key) -> None:
        self._last.pop(key, None)

    async def of_each(self, pods: Iterable[Mapping[str, Any]]) -> dict[str, FetchProgress]:
        """What each running pod said last, by its uid; those that were asked longest ago are asked anew."""
        now = asyncio.get_running_loop().time()
        found = {str(pod["metadata"]["uid"]): _address(pod) for pod in pods}
        addresses = {uid: address for uid, address in found.items() if address is not None}
        for uid in [uid for uid, known in self._readings.items() if now - known.asked > FORGOTTEN_SECONDS]:
            del self._readings[uid]
        never = now - INTERVAL_SECONDS
        readings = {uid: self._readings.setdefault(uid, _Reading(never)) for uid in addresses}
        due = [uid for uid, known in readings.items() if now - known.asked >= INTERVAL_SECONDS]
        due = sorted(due, key=lambda uid: (readings[uid].asked, uid))[:MOST_PODS]
        for uid in due:
            readings[uid].asked = now  # before anything is awaited: models that share a pod ask it once
        await asyncio.gather(*(self._read(readings[uid], addresses[uid]) for uid in due))
        return {uid: known.said for uid, known in readings.items() if known.said is not None}

    async def _read(self, known: _Reading, address: str) -> None:
        answer = await self._ask(address)
        if answer is None:
            return
        now, before = asyncio.get_running_loop().time(), known.said
        passed = now - known.answered
        rate = _bounded((answer.bytes_done - before.bytes_done) / passed) if before and passed > 0 else 0
        known.answered = now
        known.said = FetchProgress(answer.bytes_done, answer.bytes_total, answer.phase, rate)

    async def _ask(self, address: str) -> MirrorProgress | None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{self._port}/progress", timeout=_TIMEOUT) as answer:
                if answer.status != 200:
                    return None
                body = json.loads(await answer.content.read(_MAX_BYTES))
            said = MirrorProgress.from_json(body)
            return replace(
                said,
                bytes_done=_bounded(said.bytes_done),
                bytes_total=_bounded(said.bytes_total),
                files_done=_bounded(said.files_done),
                files_total=_bounded(said.files_total),
            )
        except (aiohttp.ClientError, OSError):  # TimeoutError is one
            return None
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return None  # no JSON of ours


def _bounded(amount: float) -> int:
    """What a status takes: pods answer what they like."""
    return int(min(max(amount, 0), MOST_BYTES))


def _address(pod: Mapping[str, Any]) -> str | None:
    status = pod.get("status") or {}
    if status.get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
        return None
    return status.get("podIP")
