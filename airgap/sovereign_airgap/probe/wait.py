# SPDX-License-Identifier: Apache-2.0
"""Holds a model pod's start until its seal is felt from inside: canary denied, peer answering.

Rules may arrive after the pod does; this is what keeps the model's own containers from running before them.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sovereign_airgap.errors import PolicyNotEnforced, ProbeInconclusive
from sovereign_airgap.probe.result import Outcome
from sovereign_airgap.probe.surroundings import Surroundings

# Rounds in a row that must find the same: one could be a burst of lost packets.
ROUNDS: Final = 2
_TRY_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.2


async def wait_sealed(canary: str, peer: str, seconds: float, pod: Surroundings) -> float:
    """The seconds it took; raises PolicyNotEnforced or ProbeInconclusive once `seconds` have passed."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    in_a_row = 0
    peer_answered = False
    while True:
        from_canary, from_peer = await asyncio.gather(
            pod.try_canary(canary, _TRY_SECONDS), pod.try_peer(peer, _TRY_SECONDS)
        )
        peer_answers = all(outcome is Outcome.REACHED for outcome in from_peer.values())
        peer_answered = peer_answered or peer_answers
        denied = all(outcome is Outcome.DENIED for outcome in from_canary.values())
        in_a_row = in_a_row + 1 if denied and peer_answers else 0
        if in_a_row == ROUNDS:
            return loop.time() - begun
        if loop.time() - begun + _PAUSE_SECONDS >= seconds:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    reached = [path for path, outcome in from_canary.items() if outcome is Outcome.REACHED]
    if reached:
        raise PolicyNotEnforced(
            f"Expected the canary {canary} to be denied within {seconds:g} s, but it still answers "
            f"({', '.join(reached)}): the network does not enforce this pod's policies; look at its plugin."
        )
    unable = [path for path, outcome in from_canary.items() if outcome is Outcome.UNABLE]
    if not peer_answered:
        what = f"the peer {peer} never answered; look whether it runs and the resolver knows its name"
    elif unable:
        what = f"the canary {canary} could not be tried ({', '.join(unable)}); look whether it has an address"
    else:
        what = f"not in {ROUNDS} rounds in a row; look at the load of this node and its network"
    raise ProbeInconclusive(
        f"Expected the canary to be denied while the peer answers within {seconds:g} s, but {what}."
    )
