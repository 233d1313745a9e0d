# SPDX-License-Identifier: Apache-2.0
"""The demo's progress view: one line per stage; live on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

MARKS = {"waiting": "[dim]·[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]"}


@dataclass
class Stage:
    name: str
    state: str = "waiting"
    detail: str = ""
    started: float = 0.0
    seconds: float = 0.0
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))

    def elapsed(self) -> float:
        return monotonic() - self.started if self.state == "running" else self.seconds


class Board:
    """Stages in the order they are expected; `note` changes the detail of the running one."""

    def __init__(self, console: Console, names: tuple[str, ...]) -> None:
        self.console = console
        self.stages = {name: Stage(name) for name in names}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    @contextmanager
    def shown(self) -> Iterator[Board]:
        if not self.console.is_terminal:
            yield self
            return
        with self._live:
            yield self

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run a block as that stage: ticked when it returns, crossed when it raises."""
        self.start(name)
        try:
            yield self.stages[name]
        except BaseException:
            self.finish(name, "failed")
            raise
        self.finish(name)

    def start(self, name: str) -> None:
        stage = self.stages[name]
        if stage.state == "waiting":
            stage.state, stage.started = "running", monotonic()
            self._say(stage)

    def note(self, name: str, detail: str) -> None:
        stage = self.stages[name]
        if detail != stage.detail:
            stage.detail = detail
            self._say(stage)

    def finish(self, name: str, state: str = "done") -> None:
        stage = self.stages[name]
        if stage.state in ("done", "failed"):
            return
        stage.seconds = monotonic() - stage.started if stage.started else 0.0
        stage.state = state
        self._say(stage)

    def _say(self, stage: Stage) -> None:
        if not self.console.is_terminal:
            text = f"{stage.name:<12} {stage.state:<8} {stage.elapsed():6.1f} s  {stage.detail}"
            self.console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(width=12, no_wrap=True)
        table.add_column(width=9, no_wrap=True, justify="right")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for stage in self.stages.values():
            mark: RenderableType = stage.spinner if stage.state == "running" else MARKS[stage.state]
            took = "" if stage.state == "waiting" else f"{stage.elapsed():.1f} s"
            style = "dim" if stage.state == "waiting" else ""
            table.add_row(mark, stage.name, took, stage.detail, style=style)
        return table
