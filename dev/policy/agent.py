# SPDX-License-Identifier: Apache-2.0
"""The agent's loop: look at everything, render, put it in force if it differs; and answer the CNI plugin.

Watches only wake the loop. Each round lists afresh, so a later round never knows less than an earlier one,
and "the rules are in" means: a round that began after the question has ended well.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dev.policy.api import NAMESPACES, PODS, POLICIES, ApiServerAway, Lists
from dev.policy.rules import Place, render
from dev.policy.tables import Tables
from dev.policy.world import Registration, World, pods_of

log = logging.getLogger("policy")

ANSWER_SECONDS = 15.0
RESYNC_SECONDS = 30.0
RETRY_SECONDS = 0.5


def nft(*arguments: str, stdin: str = "") -> str:
    """The program, in the network namespace of this process."""
    done = subprocess.run(["nft", *arguments], input=stdin, check=True, capture_output=True, text=True)
    return done.stdout


@dataclass
class Rounds:
    """Counts rounds, so that a question can be answered by the first one that began after it."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    asked: int = 1
    began: int = 0
    ended: int = 0

    def ask(self) -> int:
        """Demand a round from now on; its number is at most what this returns."""
        with self.changed:
            self.asked = self.began + 1
            self.changed.notify_all()
            return self.asked

    def next(self, stop: threading.Event, seconds: float) -> int | None:
        """The number of the next round once one is asked for or `seconds` are over; None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.asked > self.began or stop.is_set(), seconds)
            if stop.is_set():
                return None
            self.began += 1
            return self.began

    def done(self, number: int) -> None:
        with self.changed:
            self.ended = number
            self.changed.notify_all()

    def wait(self, number: int, seconds: float) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.ended >= number, seconds)


class Agent:
    """Keeps one table in force for the sandboxes recorded in `folder`, until it is stopped."""

    def __init__(
        self, kubeconfig: Path, folder: Path, tables: tuple[str, str], place: Place, lag_seconds: float
    ) -> None:
        self._kubeconfig, self._folder, self._place, self._lag = kubeconfig, folder, place, lag_seconds
        self._tables = Tables(tables, nft)
        self._lists = Lists(kubeconfig)
        self._rounds = Rounds()
        self._stop = threading.Event()
        self._in_force = ""
        self._enforced: frozenset[str] = frozenset()
        # Sandboxes that are older than this process are never late.
        born = time.monotonic() - lag_seconds
        self._seen = {one.container: born for one in self._registrations()}

    def run(self) -> None:
        """Until `stop`; an API server that is away is waited for, with the last rules in force."""
        for path in (NAMESPACES, PODS, POLICIES):
            self._start(partial(self._watch, path))
        self._start(self._listen)
        pause, failure = RESYNC_SECONDS, ""
        while (number := self._rounds.next(self._stop, pause)) is not None:
            try:
                pause = self._round()
            except (ApiServerAway, subprocess.CalledProcessError, ValueError) as error:
                said = getattr(error, "stderr", None) or str(error)
                if said != failure:
                    log.warning("no new rules, the old ones stay: %s", said)
                pause, failure = RETRY_SECONDS, said
            else:
                failure = ""
                self._rounds.done(number)

    def stop(self) -> None:
        self._stop.set()
        self._rounds.ask()

    def _round(self) -> float:
        """Put the rules for what is now in force; return after how many seconds to look again anyway."""
        registrations = self._registrations()
        now = time.monotonic()
        self._seen = {one.container: self._seen.get(one.container, now) for one in registrations}
        ages = {container: now - seen for container, seen in self._seen.items()}
        late = {container: age for container, age in ages.items() if age < self._lag}
        world = World(
            namespaces={
                one["metadata"]["name"]: one["metadata"].get("labels") or {}
                for one in self._lists.items(NAMESPACES)
            },
            pods=pods_of(self._lists.items(PODS), registrations, frozenset(late)),
            policies=tuple(self._lists.items(POLICIES)),
        )
        rules = render(world, self._place)
        if rules != self._in_force:
            self._tables.replace(rules)
            self._in_force = rules
            log.info("%d pods, %d policies in force", len(world.pods), len(world.policies))
        addresses = {address for pod in world.pods for address in pod.addresses}
        self._enforced = frozenset(one.container for one in registrations if addresses >= {*one.addresses})
        return min([RESYNC_SECONDS, *(self._lag - age for age in late.values())])

    def _registrations(self) -> list[Registration]:
        found = []
        for path in sorted((self._folder / "sandboxes").glob("*.json")):
            try:
                fields = json.loads(path.read_text())
            except FileNotFoundError:  # its sandbox went while we looked
                continue
            fields["addresses"] = tuple(fields["addresses"])
            found.append(Registration(**fields))
        return found

    def _watch(self, path: str) -> None:
        while not self._stop.is_set():
            try:
                for _ in Lists(self._kubeconfig).changes(path):
                    self._rounds.ask()
            except ApiServerAway as error:
                log.debug("%s", error)
            self._rounds.ask()
            self._stop.wait(RETRY_SECONDS)

    def _listen(self) -> None:
        """Answer the plugin: one question a connection, each in a thread, because it waits for a round."""
        place = self._folder / "agent.sock"
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(place))
            place.chmod(0o600)
            listener.listen(64)
            while not self._stop.is_set():
                connection, _ = listener.accept()
                self._start(partial(self._answer, connection))

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                with connection.makefile("rb") as questions:
                    question = json.loads(questions.readline(4096) or b"{}")
                connection.sendall(json.dumps(self._answer_to(question)).encode() + b"\n")
            except (OSError, ValueError) as error:
                log.warning("a question was not answered: %s", error)

    def _answer_to(self, question: dict[str, str]) -> dict[str, str]:
        number = self._rounds.ask()
        if "forget" in question:
            return {}
        if not self._rounds.wait(number, ANSWER_SECONDS):
            return {
                "error": f"The rules were not in force within {ANSWER_SECONDS:.0f} s; see the agent's log."
            }
        if "enforce" in question and question["enforce"] not in self._enforced:
            return {"error": f"The API does not know the pod of sandbox {question['enforce'][:12]}."}
        return {}

    @staticmethod
    def _start(work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()
