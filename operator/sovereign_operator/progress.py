# SPDX-License-Identifier: Apache-2.0
"""How far a mirror has come, asked from its pod: at most every ten seconds, and never in the way of anything.

Status is written from this value, so its pace bounds the pace of status writes too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from sovereign_operator.indices import Key
from sovereign_operator.values import MirrorProgress

PORT: Final = 8090
INTERVAL_SECONDS: Final = 10.0
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_MAX_BYTES: Final = 16 * 1024


class ProgressReader:
    """The last answer per model; a pod that does not answer leaves it as it is."""

    def __init__(self, session: aiohttp.ClientSession, port: int = PORT) -> None:
        self._session = session
        self._port = port
        self._last: dict[Key, tuple[float, MirrorProgress | None]] = {}

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

    async def _ask(self, address: str) -> MirrorProgress | None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{self._port}/progress", timeout=_TIMEOUT) as answer:
                if answer.status != 200:
                    return None
                body = json.loads(await answer.content.read(_MAX_BYTES))
            return MirrorProgress.from_json(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError, AttributeError):
            return None


def _address(pod: Mapping[str, Any]) -> str | None:
    status = pod.get("status") or {}
    if status.get("phase") != "Running" or pod["metadata"].get("deletionTimestamp"):
        return None
    return status.get("podIP")
