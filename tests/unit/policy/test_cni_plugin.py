# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin as containerd runs it: a program with an environment, JSON in, JSON out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dev.policy import cni_plugin

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0"}],
    "ips": [{"address": "10.244.0.10/16"}, {"address": "fd00:10:244::10/64"}],
}
ARGUMENTS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1"


def run(command: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """The plugin's exit status and what it printed; {} for nothing."""
    config = {"cniVersion": "1.0.0", "name": "sovereign", "type": "x", "folder": str(folder)}
    done = subprocess.run(
        [sys.executable, "-IS", cni_plugin.__file__],
        input=json.dumps({**config, "prevResult": RESULT}),
        env={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_ARGS": ARGUMENTS,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout or "{}")


@contextmanager
def an_agent(folder: Path, answer: dict[str, str] | None) -> Iterator[list[dict[str, str]]]:
    """Answers each question with `answer`, or hangs up without a word; yields the questions."""
    asked: list[dict[str, str]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "agent.sock"))
        listener.listen()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as lines:
                    question = json.loads(lines.readline())
                    if question == "end":
                        return
                    asked.append(question)
                    if answer is not None:
                        connection.sendall(json.dumps(answer).encode() + b"\n")

        thread = Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            with socket.socket(socket.AF_UNIX) as ending:
                ending.connect(str(folder / "agent.sock"))
                ending.sendall(b'"end"\n')
                thread.join()


def wanted(folder: Path, text: str) -> None:
    (folder / "wanted.json").write_text(text)


def test_a_sandbox_starts_when_the_agent_says_that_its_rules_are_in(tmp_path: Path) -> None:
    wanted(tmp_path, '{"enforced": true}')
    with an_agent(tmp_path, {}) as asked:
        assert run("ADD", tmp_path) == (0, RESULT)
    assert asked == [{"enforce": "c1"}]
    assert json.loads((tmp_path / "sandboxes" / "c1.json").read_text()) == {
        "container": "c1",
        "namespace": "shop",
        "name": "web",
        "uid": "u-1",
        "addresses": ["10.244.0.10", "fd00:10:244::10"],
    }


@pytest.mark.parametrize("answer", [{"error": "The rules were not in force."}, None])
def test_a_sandbox_without_rules_does_not_start(tmp_path: Path, answer: dict[str, str] | None) -> None:
    wanted(tmp_path, '{"enforced": true}')
    with an_agent(tmp_path, answer):
        status, said = run("ADD", tmp_path)
    assert status == 1
    assert said["code"] == 11
    assert "rules" in said["msg"]


@pytest.mark.parametrize("text", ['{"enforced": true}', "not JSON", "{}"])
def test_an_agent_that_should_run_and_does_not_closes_the_door(tmp_path: Path, text: str) -> None:
    wanted(tmp_path, text)
    status, said = run("ADD", tmp_path)
    assert status == 1
    assert "shop/web" in said["msg"]


def test_an_agent_that_was_switched_off_is_not_waited_for_but_learns_the_address(tmp_path: Path) -> None:
    wanted(tmp_path, '{"enforced": false}')
    assert run("ADD", tmp_path) == (0, RESULT)
    assert (tmp_path / "sandboxes" / "c1.json").exists()


def test_a_sandbox_can_be_removed_without_an_agent_and_twice(tmp_path: Path) -> None:
    wanted(tmp_path, '{"enforced": false}')
    run("ADD", tmp_path)
    wanted(tmp_path, '{"enforced": true}')
    assert run("DEL", tmp_path) == (0, {})
    assert not (tmp_path / "sandboxes" / "c1.json").exists()
    assert run("DEL", tmp_path) == (0, {})


def test_the_agent_hears_of_a_removed_sandbox(tmp_path: Path) -> None:
    wanted(tmp_path, '{"enforced": true}')
    with an_agent(tmp_path, {}) as asked:
        assert run("DEL", tmp_path) == (0, {})
    assert asked == [{"forget": "c1"}]


def test_the_plugin_says_which_versions_it_speaks(tmp_path: Path) -> None:
    assert "1.0.0" in run("VERSION", tmp_path)[1]["supportedVersions"]
