# SPDX-License-Identifier: Apache-2.0
"""Holding an entry of a node's cache without a signal and without time: both are in a script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sovereign_airgap.cache.ending import Ending
from sovereign_airgap.cache.hold import Held, HoldOptions, hold
from sovereign_airgap.cache.layout import Entry
from tests.unit.airgap.cache_entries import ONE, an_entry

Step = Callable[[], object]


class Script(Ending):
    """No signal and no time: one step of the script for each pause, and one look at what is held."""

    def __init__(self, *steps: Step, while_held: Step = lambda: None, at_check: Step = lambda: None) -> None:
        super().__init__()
        self.steps, self.while_held, self.at_check = list(steps), while_held, at_check

    def check(self) -> None:
        self.at_check()

    def pause(self, seconds: float) -> None:
        assert self.steps, "it waits for something that does not come"
        self.steps.pop(0)()

    def wait(self) -> str:
        assert not self.steps, "it did not wait for what the script has"
        self.while_held()
        return "SIGTERM"


class Node:
    """A node's cache, and where a pod writes that it holds something of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cache"
        self.tenant = self.root / "team-a"
        self.held_file = folder / "pod" / "held"
        self.held_file.parent.mkdir(parents=True)

    def hold(self, *steps: Step, while_held: Step = lambda: None, **options: object) -> Held:
        return self.hold_by(Script(*steps, while_held=while_held), **options)

    def hold_by(self, ending: Ending, **options: object) -> Held:
        wanted = HoldOptions(**options)  # type: ignore[arg-type]
        try:
            return hold(self.tenant, ONE, self.held_file, wanted, ending)
        finally:
            assert not self.held_file.exists()

    def put(self, **changes: object) -> Entry:
        return an_entry(self.root, **changes)  # type: ignore[arg-type]
