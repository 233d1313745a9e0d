# SPDX-License-Identifier: Apache-2.0
"""One run of a plan: wait until the canary is denied, then try the peer and every target, all at once.

The prober and its control run this same code; what they found means something only together.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import UTC, datetime
from typing import Final

from sovereign_airgap.errors import ProbeInconclusive
from sovereign_airgap.probe.plan import CANARY_PATHS, ProbePlan
from sovereign_airgap.probe.result import Outcome, ProbeResult
from sovereign_airgap.probe.surroundings import Surroundings

_PAUSE_SECONDS: Final = 0.2
_TUNNEL_CHARACTERS: Final = 50


async def run_plan(plan: ProbePlan, pod: Surroundings) -> ProbeResult:
    """What became of every path; raises ProbeInconclusive where the pod is too slow to keep the bound."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout(plan.bound):
            canary, settled = await _settle(plan, pod)
            again, peer, tried = await asyncio.gather(
                _try_canary_again(plan, pod, canary, settled), _try_peer(plan, pod), _try_targets(plan, pod)
            )
    except TimeoutError:
        raise ProbeInconclusive(
            f"Expected the run to end within {plan.bound:g} s, but the pod was not given the time for it; "
            "look at its CPU limit and the load of its node."
        ) from None
    return ProbeResult(
        run=plan.run,
        at=datetime.now(UTC),
        seconds=loop.time() - begun,
        node=pod.node_name,
        settled=settled if again == canary else None,
        paths={**again, **peer, **tried},
    )


def tunnel_label(run: str) -> str:
    """A label of 50 characters that looks like data carried out in a name; the same for the same run."""
    encoded = base64.b32encode(hashlib.sha256(run.encode("utf-8")).digest()).decode("ascii")
    return encoded.lower()[:_TUNNEL_CHARACTERS]


async def _settle(plan: ProbePlan, pod: Surroundings) -> tuple[dict[str, Outcome], float | None]:
    """The canary's paths as found last, and the second at which the round began that found all denied."""
    if plan.canary is None:
        return {}, None
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        at = loop.time() - begun
        found = await pod.try_canary(plan.canary, plan.timeout_seconds)
        if all(found[path] is Outcome.DENIED for path in CANARY_PATHS):
            return found, at
        if loop.time() - begun + _PAUSE_SECONDS >= plan.settle_seconds:
            return found, None
        await asyncio.sleep(_PAUSE_SECONDS)


async def _try_canary_again(
    plan: ProbePlan, pod: Surroundings, found: dict[str, Outcome], settled: float | None
) -> dict[str, Outcome]:
    """The canary once more, beside the peer: a network that was not up yet had denied it too."""
    if plan.canary is None or settled is None:
        return found
    return await pod.try_canary(plan.canary, plan.timeout_seconds)


async def _try_peer(plan: ProbePlan, pod: Surroundings) -> dict[str, Outcome]:
    """The peer's paths; a second time before it counts as out of reach, since it may have just begun."""
    if plan.peer is None:
        return {}
    found = await pod.try_peer(plan.peer, plan.timeout_seconds)
    if all(outcome is Outcome.REACHED for outcome in found.values()):
        return found
    return await pod.try_peer(plan.peer, plan.timeout_seconds)


async def _try_targets(plan: ProbePlan, pod: Surroundings) -> dict[str, Outcome]:
    tunnel = tunnel_label(plan.run)
    outcomes = await asyncio.gather(
        *(pod.try_target(target, tunnel, plan.timeout_seconds) for target in plan.targets)
    )
    return dict(zip((target.name for target in plan.targets), outcomes, strict=True))
