# SPDX-License-Identifier: Apache-2.0
"""The agent's loop against lists that the test holds, and an nft that only remembers."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from dev.cluster.process import awaited
from dev.policy import agent as agents
from dev.policy.agent import Agent, Rounds
from dev.policy.api import NAMESPACES, PODS, POLICIES, ApiServerAway
from tests.unit.policy.objects import PLACE, TABLES, a_policy


class Site:
    """What the API server would list, what nft was given, and an agent between the two."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, lag: float = 0.0) -> None:
        self.folder, self.patch, self.lag = folder, patch, lag
        pod = {"namespace": "shop", "name": "web", "uid": "u-1", "labels": {"app": "web"}}
        self.lists: dict[str, list[dict[str, Any]]] = {
            NAMESPACES: [{"metadata": {"name": "shop"}}],
            PODS: [{"metadata": pod, "spec": {"containers": [{"name": "c"}]}}],
            POLICIES: [a_policy(policyTypes=["Egress"])],
        }
        self.away = self.refusing = False
        self.applied: list[str] = []
        self.ended = Event()
        site = self

        class Lists:
            def __init__(self, _kubeconfig: Path) -> None:
                pass

            def items(self, path: str) -> list[dict[str, Any]]:
                if site.away:
                    raise ApiServerAway("away")
                return site.lists[path]

            def changes(self, _path: str) -> Iterator[None]:
                site.ended.wait()
                return iter(())

        def nft(*arguments: str, stdin: str = "") -> str:
            if site.refusing:
                raise subprocess.CalledProcessError(1, "nft", stderr="not now")
            if "chain" in stdin:
                site.applied.append(stdin)
            return ""

        patch.setattr(agents, "Lists", Lists)
        patch.setattr(agents, "ANSWER_SECONDS", 1.0)
        patch.setattr(agents, "RETRY_SECONDS", 0.05)
        patch.setattr(agents, "nft", nft)

    def sandbox(self, container: str, name: str = "web") -> None:
        record = {
            "container": container,
            "namespace": "shop",
            "name": name,
            "uid": "",
            "addresses": ["10.244.0.10"],
        }
        place = self.folder / "sandboxes" / f"{container}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(record))

    def ask(self, **question: str) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(self.folder / "agent.sock"))
            asking.sendall(json.dumps(question).encode() + b"\n")
            answer: dict[str, str] = json.loads(asking.makefile().readline())
            return answer


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(tmp_path, monkeypatch, getattr(request, "param", 0.0))
    agent = Agent(tmp_path / "kubeconfig", tmp_path, TABLES, PLACE, made.lag)
    thread = Thread(target=agent.run)
    thread.start()
    assert awaited((tmp_path / "agent.sock").exists, 5, interval=0.01)
    yield made
    made.ended.set()
    agent.stop()
    thread.join()


def test_a_question_is_answered_when_the_rules_of_that_sandbox_are_in(site: Site) -> None:
    site.sandbox("c1")
    assert site.ask(enforce="c1") == {}
    assert "10.244.0.10 : goto egress-pod-0" in site.applied[-1]


def test_what_does_not_change_is_not_put_in_force_again(site: Site) -> None:
    site.sandbox("c1")
    site.ask(enforce="c1")
    before = len(site.applied)
    assert site.ask() == {}
    assert len(site.applied) == before


def test_a_sandbox_of_a_pod_that_the_api_does_not_know_is_refused(site: Site) -> None:
    site.sandbox("c1", name="nobody")
    assert "does not know" in site.ask(enforce="c1")["error"]


def test_without_an_api_server_no_sandbox_starts_and_the_old_rules_stay(site: Site) -> None:
    assert site.ask() == {}
    before = list(site.applied)
    site.away = True
    site.sandbox("c1")
    assert "not in force" in site.ask(enforce="c1")["error"]
    assert site.applied == before
    site.away = False
    assert site.ask(enforce="c1") == {}


def test_rules_that_the_kernel_refuses_are_not_in_force(site: Site) -> None:
    site.refusing = True
    site.sandbox("c1")
    assert "not in force" in site.ask(enforce="c1")["error"]


@pytest.mark.parametrize("site", [1.0], indirect=True)
def test_with_a_lag_a_new_pod_is_open_first_and_closed_after_it(site: Site) -> None:
    site.sandbox("c1")
    assert site.ask(enforce="c1") == {}
    assert "10.244.0.10" in site.applied[-1]
    assert "goto" not in site.applied[-1]
    assert awaited(lambda: "goto egress-pod-0" in site.applied[-1], 5, interval=0.02)


def test_a_removed_sandbox_takes_its_address_along(site: Site) -> None:
    site.sandbox("c1")
    site.ask(enforce="c1")
    (site.folder / "sandboxes" / "c1.json").unlink()
    site.ask(forget="c1")
    assert awaited(lambda: "10.244.0.10" not in site.applied[-1], 5, interval=0.02)


def test_a_round_that_runs_already_is_no_answer() -> None:
    rounds = Rounds()
    first = rounds.next(Event(), 1)
    asked = rounds.ask()
    rounds.done(first or 0)
    assert not rounds.wait(asked, 0)
    rounds.done(rounds.next(Event(), 1) or 0)
    assert rounds.wait(asked, 0)
