# SPDX-License-Identifier: Apache-2.0
"""The table of contents: observe, decide, carry out, report. Each once, for one model at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, what to say once it is done, and when to look again."""

    actions: tuple[Action, ...] = ()
    report: Callable[[Done], SovereignModelStatus | None] = lambda done: None
    plan: Plan | None = None
    happening: Happening | None = None
    again: float | None = None
    unsettled: str = ""  # why to look again with backoff


class Reconciler:
    """Runs for one key of the work queue; it keeps nothing but the memory of what needs no second look."""

    def __init__(self, senses: Senses, executor: Executor) -> None:
        self._senses = senses
        self._executor = executor
        self._settled: dict[Key, str] = {}

    async def __call__(self, key: Key) -> float | None:
        seen = self._senses.indices.fingerprint(key, self._senses.config.product_label)
        if self._settled.get(key) == seen or not all(key):
            return None  # nothing changed since a look that found nothing to do: no request at all
        self._settled.pop(key, None)
        world, wants = await observe(key, self._senses)
        decision = decide(world, wants, self._senses.config)
        done = await self._executor.carry_out(world, decision.actions)
        wrote = await self._say(world, decision, done)
        if decision.unsettled:
            raise TryLater(decision.unsettled)
        if done.outcome.contested:
            return WINDOW_SECONDS
        if decision.again is None and not wrote and not done.outcome.writes:
            self._settled[key] = seen
        return decision.again

    async def _say(self, world: World, decision: Decision, done: Done) -> bool:
        """Status last and only if different; events after that write succeeded."""
        if world.body is None:
            return False
        before, after = status.recorded(world.body), decision.report(done)
        differs = after is not None and status.differs(world.body, after)
        if after is not None and differs:
            await self._senses.cluster.write_status(world.body, status.as_json(after))
        told: tuple[Happening, ...] = (decision.happening,) if decision.happening else ()
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
        say = status.deleting(body, step.message, world.now)
        report = (lambda done: say) if step.again is not None else (lambda done: None)
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
        unsettled=planned.unsettled,
    )
