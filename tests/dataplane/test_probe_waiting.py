# SPDX-License-Identifier: Apache-2.0
"""Enforcement that is there, that lags and that never comes: as the prober and as a model pod see it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_airgap.probe.plan import ProbePlan
from tests.dataplane.network_lab import CANARY, CANARY6, PEER, RESOLVER, Lab, a_lab

CLOSED = (f"ip daddr {PEER} accept", f"ip daddr {RESOLVER} udp dport 53 accept", "drop")


@pytest.fixture(scope="module")
def made() -> Iterator[Lab]:
    with a_lab() as lab:
        yield lab


@pytest.fixture
def lab(made: Lab) -> Lab:
    made.forward()
    return made


def a_wait(seconds: float, result_file: Path, canary: str = CANARY, peer: str = PEER) -> list[str]:
    return ["probe", "wait", "--canary", canary, "--peer", peer, "--seconds", str(seconds),
            "--result-file", str(result_file)]  # fmt: skip


def waited(process: subprocess.Popen[str], result_file: Path) -> tuple[int, str]:
    """How it ended and the reason in its result file."""
    with process:
        process.communicate(timeout=60)
    return process.returncode, json.loads(result_file.read_bytes())["reason"]


def close_late(lab: Lab) -> None:
    """Applies the rules two seconds after the pod's first packet."""
    while not lab.canary_was_tried():
        time.sleep(0.01)
    time.sleep(2)  # the lag itself
    lab.forward(*CLOSED)


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for this signal (proc(5))."""
    [mask] = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_rules_that_come_two_seconds_late_are_waited_for(lab: Lab) -> None:
    plan = ProbePlan("run-1", 0.5, 20, CANARY, PEER, ()).render()
    with lab.start("probe", "run", "--plan-json", plan) as process:
        close_late(lab)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert set(result["paths"].values()) == {"denied", "reached"} and result["paths"]["peer-udp"] == "reached"
    assert 1 < result["settled"] < 15


def test_a_model_pod_starts_only_once_late_rules_are_there(lab: Lab, tmp_path: Path) -> None:
    process = lab.start(*a_wait(30, tmp_path / "result"))
    close_late(lab)
    assert process.poll() is None
    assert waited(process, tmp_path / "result") == (0, "Sealed")


def test_a_model_pod_starts_with_names_where_only_the_resolver_and_the_peer_answer(
    lab: Lab, tmp_path: Path
) -> None:
    lab.forward(*CLOSED)
    process = lab.start(*a_wait(30, tmp_path / "result", canary="canary.example"))
    assert waited(process, tmp_path / "result") == (0, "Sealed")


def test_a_network_that_enforces_nothing_is_refused(lab: Lab, tmp_path: Path) -> None:
    process = lab.start(*a_wait(1, tmp_path / "result"))
    assert waited(process, tmp_path / "result") == (3, "PolicyNotEnforced")


def test_a_canary_that_answers_over_ipv6_only_is_not_denied(lab: Lab, tmp_path: Path) -> None:
    lab.forward(f"ip6 daddr {CANARY6} udp dport 8443 accept", *CLOSED)
    process = lab.start(*a_wait(1, tmp_path / "result", canary="canary.example"))
    assert waited(process, tmp_path / "result") == (3, "PolicyNotEnforced")
    assert "canary-udp)" in (tmp_path / "result").read_text()


@pytest.mark.parametrize("rules", [("drop",), (f"ip daddr {RESOLVER} accept", "drop"), ("reject",)])
def test_a_network_that_lets_nothing_through_proves_nothing(
    lab: Lab, tmp_path: Path, rules: tuple[str, ...]
) -> None:
    lab.forward(*rules)
    process = lab.start(*a_wait(1, tmp_path / "result", canary="canary.example"))
    assert waited(process, tmp_path / "result") == (3, "ProbeInconclusive")


def test_sigterm_ends_a_wait_at_once(lab: Lab, tmp_path: Path) -> None:
    process = lab.start(*a_wait(60, tmp_path / "result"))
    while not handles(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert waited(process, tmp_path / "result") == (1, "Interrupted")
