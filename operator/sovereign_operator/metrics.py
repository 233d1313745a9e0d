# SPDX-License-Identifier: Apache-2.0
"""What is known about every seal, for Prometheus: read from what is watched, so that a scrape asks nobody.

The text format is a few lines, and these are two gauges: no library is needed for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from aiohttp import web

from sovereign_operator.reasons import EGRESS_SEALED
from sovereign_operator.values import Manifest
from sovereign_operator.world import condition_of, moment

SEALED: Final = "sovereign_egress_sealed"
PROBED: Final = "sovereign_egress_probe_timestamp_seconds"
HEADS: Final = {
    SEALED: "Whether a probe has proven that nothing gets out of the model's pods, and the reason for it.",
    PROBED: "When the last probe of the model's seal ended, in seconds since 1970.",
}
CONTENT_TYPE: Final = "text/plain; version=0.0.4"


def exposition(models: Iterable[Manifest]) -> str:
    """The gauges of all models, by namespace and name."""
    lines: dict[str, list[str]] = {name: [] for name in HEADS}
    for body in sorted(models, key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"])):
        metadata, sealed = body["metadata"], condition_of(body, EGRESS_SEALED)
        labels = f'namespace="{_escaped(metadata["namespace"])}",model="{_escaped(metadata["name"])}"'
        if sealed:
            reason = _escaped(str(sealed.get("reason", "")))
            value = int(sealed.get("status") == "True")
            lines[SEALED].append(f'{SEALED}{{{labels},reason="{reason}"}} {value}')
        ended = moment(((body.get("status") or {}).get("egress") or {}).get("lastProbe"))
        if ended is not None:
            lines[PROBED].append(f"{PROBED}{{{labels}}} {int(ended.timestamp())}")
    parts = (
        [f"# HELP {name} {words}", f"# TYPE {name} gauge", *lines[name]] for name, words in HEADS.items()
    )
    return "".join(f"{line}\n" for part in parts for line in part)


@contextlib.asynccontextmanager
async def served(address: str, models: Callable[[], Iterable[Manifest]]) -> AsyncIterator[int]:
    """GET /metrics on host:port inside this block; answers the port. An empty address serves nothing."""
    if not address:
        yield 0
        return

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=exposition(models()).encode(), headers={"Content-Type": CONTENT_TYPE})

    application = web.Application()
    application.router.add_get("/metrics", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
