# SPDX-License-Identifier: Apache-2.0
"""The double of the world outside: what it answers, what the guard lets through to it, what is counted."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dev import outside
from dev.outside_answers import dns_answer
from sovereign_airgap.probe.plan import Target
from tests.unit.policy import links

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTATION = ("198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")


def test_every_address_is_from_a_range_for_documentation() -> None:
    for address in (outside.WEB, outside.WEB6, outside.METADATA, outside.OTHER_NODE):
        assert any(
            ipaddress.ip_address(address) in network for network in map(ipaddress.ip_network, DOCUMENTATION)
        )


def test_the_targets_are_what_a_probe_takes() -> None:
    names = [Target.from_json(target).name for target in outside.PROBE_TARGETS]
    assert names == [
        "outside-tcp-443",
        "outside-tcp-80",
        "outside-tcp-53",
        "outside-udp-53",
        "outside-udp-443",
        "outside-udp-123",
        "outside-icmp",
        "outside6-tcp-443",
        "outside6-udp-53",
        "metadata",
        "other-node-kubelet",
        "outside-dns-name",
    ]


def a_query(kind: int) -> bytes:
    return b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x05probe\x07example\x00" + bytes([0, kind, 0, 1])


def test_its_dns_says_of_every_name_that_it_is_the_web_address() -> None:
    answer = dns_answer(a_query(1))
    assert answer is not None
    assert answer[:2] == b"\x12\x34"
    assert answer.endswith(ipaddress.ip_address(outside.WEB).packed)
    assert (dns_answer(a_query(28)) or b"").endswith(ipaddress.ip_address(outside.WEB6).packed)
    assert (dns_answer(a_query(15)) or b"")[6:8] == b"\x00\x00", "no record of that kind"


@pytest.mark.parametrize("query", [b"", b"x" * 11, a_query(1)[:-3], b"\xff" * 40])
def test_its_dns_is_silent_where_there_is_no_question(query: bytes) -> None:
    assert dns_answer(query) is None


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `outside_journey` saw, in namespaces of its own for the network and for mounts."""
    mounts = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && mkdir /run/netns"
    program = (sys.executable, "-m", "tests.unit.policy.outside_journey", str(tmp_path_factory.mktemp("o")))
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'airgap'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


in_namespaces = pytest.mark.skipif(
    not links.possible(), reason="needs root, nftables and a kernel that filters bridges"
)


@pytest.mark.slow
@in_namespaces
def test_of_clusters_that_claim_a_machine_at_once_one_has_it_and_the_others_are_told(
    seen: dict[str, Any],
) -> None:
    assert seen["refused"] == [True] * 5


@pytest.mark.slow
@in_namespaces
def test_a_pod_reaches_the_stand_in_and_no_other_address(seen: dict[str, Any]) -> None:
    assert seen["reached"] == [True] * 6
    assert seen["udp"] == [outside.WEB]
    assert seen["elsewhere"] == [False, False, False]


@pytest.mark.slow
@in_namespaces
def test_a_pod_reaches_the_stand_in_over_ipv6_where_single_links_are_forwarded(seen: dict[str, Any]) -> None:
    assert seen["reached6"] is seen["ipv6"]


@pytest.mark.slow
@in_namespaces
def test_the_outside_reaches_neither_pods_nor_this_machine(seen: dict[str, Any]) -> None:
    assert seen["inwards"] == [False, False, False]


@pytest.mark.slow
@in_namespaces
def test_every_packet_towards_an_outside_address_is_counted_by_its_pod(seen: dict[str, Any]) -> None:
    assert seen["counted"][f"10.244.0.10 {outside.WEB}"] >= 3
    assert seen["counted"]["10.244.0.10 192.0.2.77"] >= 1, "though the guard dropped it"
    assert not any(pair.startswith("10.244.0.11") for pair in seen["counted"]), "it spoke to pods only"
    assert seen["forgotten"] == {}


@pytest.mark.slow
@in_namespaces
def test_nothing_is_left_of_it(seen: dict[str, Any]) -> None:
    assert seen["left"] == [[], []]
    assert seen["forwarding"] == ["0", "0"]
