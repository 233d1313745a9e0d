# SPDX-License-Identifier: Apache-2.0
"""Runs of a plan on loopback: what each attempt proves, the order of things, the command's exit and files."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from sovereign_airgap.cli import run
from sovereign_airgap.errors import PolicyNotEnforced, ProbeInconclusive
from sovereign_airgap.probe import attempts, wait
from sovereign_airgap.probe.plan import ProbePlan, Protocol, Target
from sovereign_airgap.probe.resolver import Resolver
from sovereign_airgap.probe.result import Outcome, parse_result
from sovereign_airgap.probe.run import run_plan, tunnel_label
from sovereign_airgap.probe.surroundings import Surroundings
from sovereign_airgap.probe.wait import wait_sealed
from tests.unit.airgap.name_server import NameServer, an_answer

LOCAL, LOCAL6 = ip_address("127.0.0.1"), ip_address("::1")
R, D, U = Outcome.REACHED, Outcome.DENIED, Outcome.UNABLE
ALL_DENIED = {"canary-tcp": D, "canary-udp": D, "canary-dns": D}
ALL_REACHED = {"canary-tcp": R, "canary-udp": R, "canary-dns": R}
PEER = {"peer-tcp": R, "peer-udp": R}
NO_PEER = {"peer-tcp": R, "peer-udp": D}


@dataclasses.dataclass(frozen=True)
class Scripted(Surroundings):
    """Finds in each round what the test says, the last of it again and again."""

    canary: list[dict[str, Outcome]] = dataclasses.field(default_factory=list)
    peer: list[dict[str, Outcome]] = dataclasses.field(default_factory=lambda: [PEER])

    async def try_canary(self, host: str, timeout: float) -> dict[str, Outcome]:  # noqa: ASYNC109
        return self.canary.pop(0) if len(self.canary) > 1 else self.canary[0]

    async def try_peer(self, host: str, timeout: float) -> dict[str, Outcome]:  # noqa: ASYNC109
        return self.peer.pop(0) if len(self.peer) > 1 else self.peer[0]


def a_plan(*targets: Target, settle: float = 0, **hosts: str) -> ProbePlan:
    return ProbePlan("run-1", 0.3, settle, hosts.get("canary"), hosts.get("peer"), targets)


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that is taken and not listened on: connections to it are refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_listening_port_is_reached_and_a_closed_one_is_denied(closed: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert asyncio.run(attempts.try_tcp(LOCAL, server.getsockname()[1], 1)) is R
    assert asyncio.run(attempts.try_tcp(LOCAL, closed, 1)) is D
    assert asyncio.run(attempts.try_udp(LOCAL, closed, 1)) is D
    assert asyncio.run(attempts.try_tcp(LOCAL6, closed, 1)) is D


def test_a_server_that_accepts_nothing_is_denied_in_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        assert asyncio.run(attempts.try_udp(LOCAL, silent.getsockname()[1], 0.3)) is D
        silent.setblocking(False)
        assert [len(silent.recv(100)) for _ in range(attempts.SENDINGS)] == [16] * attempts.SENDINGS


@pytest.mark.parametrize("broken", ["_has_ipv6", "_has_ipv4"])
def test_a_pod_without_an_address_of_the_family_is_unable(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, broken, lambda: False)
    address = ip_address("2001:db8::1" if broken == "_has_ipv6" else "192.0.2.1")
    assert asyncio.run(attempts.try_tcp(address, 443, 0.3)) is U
    assert asyncio.run(attempts.try_udp(address, 443, 0.3)) is U
    assert asyncio.run(attempts.try_echo(address, 0.3)) is U


def test_a_pod_without_sockets_is_unable(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(attempts.socket, "socket", none_left)
    assert attempts._socket(LOCAL, socket.SOCK_STREAM) is U


def test_one_answer_is_enough_and_what_was_not_tried_proves_nothing() -> None:
    assert attempts.strongest([D, U, R]) is R
    assert attempts.strongest([D, U]) is D
    assert attempts.strongest([]) is U


def test_a_name_is_asked_as_it_is_and_as_a_tunnel() -> None:
    target = Target("name", Protocol.RESOLVE, query="probe.example")
    tunnelled = f"{tunnel_label('run-1')}.probe.example"
    for opened in ("probe.example", tunnelled):
        with NameServer(
            lambda query, name, opened=opened: [an_answer(query, ["192.0.2.1"] if name == opened else [])]  # type: ignore[misc]
        ) as server:
            pod = Surroundings(resolver=Resolver((LOCAL,), server.port))
            result = asyncio.run(run_plan(a_plan(target), pod))
        assert result.paths == {"name": R}
        assert set(server.seen) == {"probe.example", tunnelled}
    assert re.fullmatch("[a-z2-7]{50}", tunnel_label("run-1")) and tunnel_label("run-2") != tunnel_label(
        "run-1"
    )


def test_the_canary_is_tried_until_it_is_denied() -> None:
    pod = Scripted(node_name="node-1", canary=[ALL_REACHED, {**ALL_DENIED, "canary-dns": R}, ALL_DENIED])
    result = asyncio.run(run_plan(a_plan(canary="c.example", peer="p.example", settle=60), pod))
    assert result.paths == {**ALL_DENIED, **PEER} and result.node == "node-1"
    assert result.settled is not None and 0.4 <= result.settled < 30


@pytest.mark.parametrize(
    ("canary", "settle"),
    [
        ([ALL_REACHED], 0.5),
        ([ALL_REACHED, ALL_DENIED], 0.0),
        ([{**ALL_DENIED, "canary-tcp": U}], 0.5),
        # Denied once, because nothing worked yet; then it answers beside the peer.
        ([ALL_DENIED, ALL_REACHED], 0.5),
    ],
)
def test_a_canary_that_is_not_denied_to_the_end_never_settles(
    canary: list[dict[str, Outcome]], settle: float
) -> None:
    pod = Scripted(canary=[*canary])
    result = asyncio.run(run_plan(a_plan(canary="c.example", settle=settle), pod))
    assert result.settled is None
    assert set(result.paths.values()) != {D}


def test_a_peer_is_tried_twice_before_it_is_out_of_reach() -> None:
    pod = Scripted(canary=[ALL_DENIED], peer=[NO_PEER, PEER])
    assert asyncio.run(run_plan(a_plan(peer="p.example"), pod)).paths == PEER
    pod = Scripted(canary=[ALL_DENIED], peer=[NO_PEER])
    assert asyncio.run(run_plan(a_plan(peer="p.example"), pod)).paths == NO_PEER


def test_two_rounds_in_a_row_make_a_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_PAUSE_SECONDS", 0.001)
    pod = Scripted(canary=[ALL_DENIED, ALL_REACHED, ALL_DENIED], peer=[PEER, PEER, NO_PEER, PEER])
    asyncio.run(wait_sealed("c.example", "p.example", 5, pod))
    assert pod.canary == [ALL_DENIED] and pod.peer == [PEER]


@pytest.mark.parametrize(
    ("canary", "peer", "error", "says"),
    [
        (ALL_REACHED, PEER, PolicyNotEnforced, "canary-tcp, canary-udp, canary-dns"),
        ({**ALL_DENIED, "canary-dns": R}, NO_PEER, PolicyNotEnforced, r"\(canary-dns\)"),
        (ALL_DENIED, NO_PEER, ProbeInconclusive, "the peer p.example never answered"),
        ({**ALL_DENIED, "canary-udp": U}, PEER, ProbeInconclusive, "could not be tried"),
    ],
)
def test_what_keeps_a_model_pod_from_starting_is_named(
    canary: dict[str, Outcome], peer: dict[str, Outcome], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        asyncio.run(wait_sealed("c.example", "p.example", 0.3, Scripted(canary=[canary], peer=[peer])))


def test_a_result_goes_to_the_file_and_to_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "node-1")
    monkeypatch.setenv("NODE_IP", "127.0.0.1")
    plan = tmp_path / "plan.json"
    plan.write_text(a_plan(Target("own", Protocol.TCP, "node", closed)).render())
    file = tmp_path / "result"
    for given in (["--plan", str(plan)], ["--plan-json", plan.read_text()]):
        assert run(["probe", "run", *given, "--result-file", str(file)]) == 0
        result = parse_result(capsys.readouterr().out)
        assert result == parse_result(file.read_bytes())
        assert (result.paths, result.node, result.run) == ({"own": D}, "node-1", "run-1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--plan-json", "{}"],
        ["run", "--plan-json", "x" * 20000],
        ["run", "--plan-json", "{}", "--plan", "/dev/null"],
        ["run", "--plan", "/dev/zero"],
        ["wait", "--canary", "a b", "--peer", "127.0.0.1"],
        ["wait", "--canary", "127.0.0.1", "--peer", "0.0.0.0"],
        ["wait", "--canary", "127.0.0.1"],
        ["listen", "--tcp", "0"],
    ],
)
def test_a_wrong_command_line_is_usage(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "result"
    assert (
        run(["probe", *arguments, *(["--result-file", str(file)] if arguments[0] != "listen" else [])]) == 2
    )
    if arguments[0] != "listen":
        assert json.loads(file.read_bytes())["reason"] == "Usage"


def test_a_result_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["probe", "run", "--plan-json", a_plan().render(), "--result-file", str(tmp_path)]) == 1
    assert "DiskFailed: Expected to write the result" in capsys.readouterr().err
