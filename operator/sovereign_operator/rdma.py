# SPDX-License-Identifier: Apache-2.0
"""What the seal does not cover, said where it is reported: RDMA adapters write into another node's memory,
and no packet of theirs passes the kernel. EgressSealed stays what it is, a proof about packets. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sovereign_operator.api import EgressStatus, SovereignModel
from sovereign_operator.config import RDMA
from sovereign_operator.reasons import RDMA_NOT_COVERED
from sovereign_operator.world import Stage

# Of a condition, in characters; what is not covered is never what gets cut off.
LONGEST_MESSAGE: Final = 1024
MOST_FINDINGS: Final = 48


def told(sealed: Stage, model: SovereignModel) -> Stage:
    """What EgressSealed says, whatever that is, and that it is not about the workers' RDMA devices."""
    wish = model.spec.serving.rdma
    if wish is None:
        return sealed
    words = (
        f"{RDMA_NOT_COVERED}: no NetworkPolicy sees the traffic of {wish.resource}, and the probe says "
        "nothing about it."
    )
    return replace(sealed, message=f"{sealed.message[: LONGEST_MESSAGE - len(words) - 1]} {words}")


def listed(egress: EgressStatus, model: SovereignModel) -> EgressStatus:
    """The findings with `rdma` as the last of them while the model has such devices, and without it else."""
    findings = [finding for finding in egress.findings if finding != RDMA]
    if model.spec.serving.rdma is not None:
        findings = [*findings[: MOST_FINDINGS - 1], RDMA]
    return egress.model_copy(update={"findings": findings})
