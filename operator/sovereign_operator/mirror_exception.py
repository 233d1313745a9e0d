# SPDX-License-Identifier: Apache-2.0
"""Which mirror Job has a way out of the cluster, and since when it has none any more. Pure.

The Job comes first and its exception after it, once the Job was seen: the policy is owned by the Job's uid
and selects by it. Whatever happens in between, an operator that ends or a request that is refused, leaves a
Job without a way out, which waits and asks again for minutes, and never a way out without its Job.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from sovereign_operator.api import ANNOTATION_RENDERED
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.mirror_exception import mirror_exception
from sovereign_operator.rollout import first_difference, needs_apply
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Apply,
    Delete,
    World,
    annotation,
    is_dying,
    is_finished,
    name_of,
)


@dataclass(frozen=True, slots=True)
class ExceptionStep:
    """`said`: what a mirror pod may reach while it runs, in words; empty while there is none."""

    said: str = ""
    actions: tuple[Action, ...] = ()


def next_step(world: World, job: Manifest | None, config: OperatorConfig) -> ExceptionStep:
    """`job`: the mirror Job as it is rendered now; every other one is on its way out."""
    running = tuple(
        live for live in world.jobs if job is not None and name_of(live) == name_of(job) and _runs(live)
    )
    sources = config.external_sources
    if not sources.cidrs:
        # The site holds mirror pods by other means, or does not: the operator opens and closes nothing.
        return ExceptionStep(_words(running, config), closing(world.exceptions))
    entitled = running if sources.allowed else ()
    wanted = {name_of(live): mirror_exception(live, sources) for live in entitled}
    found = {name_of(policy): policy for policy in world.exceptions if not is_dying(policy)}
    surplus = tuple(policy for name, policy in found.items() if name not in wanted)
    opening = tuple(
        _opened(found.get(name), policy)
        for name, policy in wanted.items()
        if name not in found or needs_apply(found[name], policy)
    )
    return ExceptionStep(_words(entitled, config), (*closing(surplus), *opening))


def closing(exceptions: tuple[Manifest, ...]) -> tuple[Action, ...]:
    """Takes exceptions away; whoever needed them has ended or is about to."""
    return tuple(Delete(policy) for policy in sorted(exceptions, key=name_of) if not is_dying(policy))


def _opened(live: Manifest | None, wanted: Manifest) -> Apply:
    if live is None or annotation(live, ANNOTATION_RENDERED) != annotation(wanted, ANNOTATION_RENDERED):
        return Apply(wanted)
    return Apply(wanted, restores=True, drifted_at=first_difference(live, wanted))


def _runs(job: Manifest) -> bool:
    return not is_dying(job) and not is_finished(job)


def _words(jobs: tuple[Manifest, ...], config: OperatorConfig) -> str:
    if not jobs:
        return ""
    sources = config.external_sources
    ports = ", ".join(str(port) for port in sources.ports)
    host = urlsplit(sources.endpoint).hostname or sources.endpoint
    names = ", ".join(sorted(name_of(job) for job in jobs))
    return f"Job {names} mirrors from {host}: its pod may leave the cluster on TCP {ports}."
