# SPDX-License-Identifier: Apache-2.0
"""The table of contents: observe, decide, carry out, report. Each once, for one model at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Final

from sovereign_operator import deletion, events, status
from sovereign_operator.api import SovereignModelStatus
from sovereign_operator.carry_out import WINDOW_SECONDS, Done, Executor
from sovereign_operator.config import OperatorConfig
from sovereign_operator.indices import Key
from sovereign_operator.observe import Senses, observe
from sovereign_operator.plan import Plan, plan
from sovereign_operator.wanted import Wanted
from sovereign_operator.workqueue import TryLater
from sovereign_operator.world import Action, Happening, World

# A clock that is corrected by less than this was not set back.
CLOCK_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, what to say once it is done, and when to look again."""

    actions: tuple[Action, ...] = ()
    report: Callable[[Done], SovereignModelStatus | None] = lambda done: None
    plan: Plan | None = None
    happening: Happening | None = None
    again: float | None = None
    rest: float | None = None  # s; until then only a change is worth a look
    unsettled: str = ""  # why to look again with backoff


@dataclass(frozen=True, slots=True)
class Settled:
    """A look that found nothing to do. It counts while nothing changes, for a time, on a clock that runs."""

    fingerprint: str
    since: datetime
    rest: float | None

    def seconds_left(self, fingerprint: str, now: datetime) -> float | None:
        """Inf where only a change matters, None where it is time to look."""
        passed = (now - self.since).total_seconds()
        left = inf if self.rest is None else self.rest - passed
        return left if self.fingerprint == fingerprint and passed >= -CLOCK_SLACK and left > 0 else None


class Reconciler:
    """Runs for one key of the work queue; it keeps nothing but the memory of what needs no second look."""

    def __init__(self, senses: Senses, executor: Executor) -> None:
        self._senses = senses
        self._executor = executor
        self._settled: dict[Key, Settled] = {}

    async def __call__(self, key: Key) -> float | None:
        seen = self._senses.indices.fingerprint(key, self._senses.config.product_label)
        settled = self._settled.pop(key, None)
        left = settled.seconds_left(seen, datetime.now(UTC)) if settled else None
        if settled is not None and left is not None:
            self._settled[key] = settled
            return None if left == inf else left  # nothing changed and nothing is due: no request at all
        if not all(key):
            return None
        world, wants = await observe(key, self._senses)
        decision = decide(world, wants, self._senses.config)
        done = await self._executor.carry_out(world, decision.actions)
        wrote = await self._say(world, decision, done)
        # A right, a quota or a policy that changes wakes nobody: what was refused is tried again by itself.
        if unsettled := decision.unsettled or done.outcome.refused:
            raise TryLater(unsettled)
        if done.outcome.contested:
            return WINDOW_SECONDS
        if decision.again is None and not wrote and not done.outcome.writes:
            self._settled[key] = Settled(seen, world.now, decision.rest)
        return decision.rest if decision.again is None else decision.again

    async def _say(self, world: World, decision: Decision, done: Done) -> bool:
        """Status last and only if different; events after that write succeeded."""
        if world.body is None:
            return False
        before, after = status.recorded(world.body), decision.report(done)
        differs = after is not None and status.differs(world.body, after)
        if after is not None and differs:
            await self._senses.cluster.write_status(world.body, status.as_json(after))
        told: tuple[Happening, ...] = ()
        if decision.happening and not done.outcome.refused:
            told = (decision.happening,)
        if after is not None:
            told += status.happenings(before, after, decision.plan, done.restored)
        await events.post(self._senses.cluster, world.body, told, world.now)
        return differs


def decide(world: World, wants: Wanted | None, config: OperatorConfig) -> Decision:
    """Which of a model's few situations this is, and what follows. Pure."""
    body, model = world.body, world.model
    if body is None or (world.is_being_deleted and not deletion.is_ours_to_finish(body)):
        swept = deletion.sweep(world)
        return Decision(swept.actions, again=swept.again)
    if world.is_being_deleted:
        step = deletion.next_step(world, body, config.deletion_seconds)

        def report(done: Done) -> SovereignModelStatus | None:
            """Nothing of a model that has been let go."""
            if step.again is None and not done.outcome.refused:
                return None
            return status.deleting(body, done.outcome.refused or step.message, world.now)

        return Decision(step.actions, report, happening=step.happening, again=step.again)
    if not status.recorded(body).conditions:
        first = status.unobserved(body, world.now)
        return Decision(report=lambda done: first, again=0.0)
    if model is None or wants is None:
        unread = status.unreadable(body, world.unreadable, world.now)
        return Decision(report=lambda done: unread)
    planned = plan(world, model, wants, config)
    return Decision(
        planned.actions,
        lambda done: status.status_of(world, model, planned, done.outcome),
        planned,
        again=planned.again,
        rest=planned.rest,
        unsettled=planned.unsettled,
    )
