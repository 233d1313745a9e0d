# SPDX-License-Identifier: Apache-2.0
"""A pod, a router and everything else, as three network namespaces with documentation addresses only.

Nothing in them can leave the machine: no link leads out of the three. Rules stand in the router, as those of
a network plugin stand outside the pod.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dev.chart_crds import ROOT

CANARY, PEER, OUTSIDE, RESOLVER, NODE = "192.0.2.1", "192.0.2.2", "192.0.2.10", "192.0.2.53", "192.0.2.100"
CANARY6, OUTSIDE6 = "2001:db8::1", "2001:db8::10"
_FAR4 = (CANARY, PEER, OUTSIDE, RESOLVER, NODE)
_FAR6 = (CANARY6, OUTSIDE6)
_POD6, _ROUTER6 = "2001:db8:1::2/64", "2001:db8:1::1"
_ETC = Path("/etc/netns")
_PORTS = {"--tcp": (8443, 443, 80, 53, 10250), "--udp": (8443, 443, 123, 9999), "--dns": (8053,)}
_LISTEN = [word for option, ports in _PORTS.items() for port in ports for word in (option, str(port))]


@dataclass(frozen=True)
class Lab:
    """Namespaces by name; `pod` is where programs run, `router` where rules are."""

    pod: str
    router: str

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`sovereign-airgap` with these arguments, inside the pod."""
        return subprocess.Popen(
            _inside(self.pod, sys.executable, "-m", "sovereign_airgap.cli", *arguments),
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, environment=environment) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def forward(self, *rules: str, policy: str = "accept") -> None:
        """Replaces all rules of the router at once; answers to what was let through always pass."""
        lines = [
            "add table inet lab",
            "delete table inet lab",
            "table inet lab {",
            "counter to_canary {}",
            "chain forward {",
            f"type filter hook forward priority 0; policy {policy};",
            f"ip daddr {CANARY} counter name to_canary",
            "ct state established,related accept",
            *rules,
            "}",
            "}",
        ]
        _call(*_inside(self.router, "nft", "-f", "-"), text="\n".join(lines))

    def canary_was_tried(self) -> bool:
        """Whether anything went to the canary over IPv4 since `forward`."""
        text = _call(*_inside(self.router, "nft", "list", "counter", "inet", "lab", "to_canary"))
        return "packets 0 " not in text

    def ping_sockets(self, allowed: bool) -> None:
        value = "0 2147483647" if allowed else "1 0"
        _call(*_inside(self.pod, "sysctl", "-qw", f"net.ipv4.ping_group_range={value}"))

    def without_ipv6(self) -> None:
        _call(*_inside(self.pod, "ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"))

    def with_ipv6(self) -> None:
        _address(self.pod, "eth0", _POD6)
        _call(*_inside(self.pod, "ip", "-6", "route", "replace", "default", "via", _ROUTER6))


@contextmanager
def a_lab() -> Iterator[Lab]:
    """Skips without root or its tools; removes by name what it made, and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program in ("ip", "nft", "sysctl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    name = f"sov-probe-{os.getpid()}"
    pod, router, far = (f"{name}-{part}" for part in ("pod", "router", "far"))
    with ExitStack() as made:
        for each in (pod, router, far):
            added = subprocess.run(["ip", "netns", "add", each], capture_output=True, text=True, check=False)
            if added.returncode != 0:
                pytest.skip(f"root may not make network namespaces here: {added.stderr.strip()}")
            made.callback(_call, "ip", "netns", "delete", each)
            _call(*_inside(each, "ip", "link", "set", "lo", "up"))
            # Links that come up later get addresses that can be used at once.
            for scope in ("all", "default"):
                _call(*_inside(each, "sysctl", "-qw", f"net.ipv6.conf.{scope}.accept_dad=0"))
        _link(router, "pod0", pod, "eth0")
        _link(router, "far0", far, "eth0")
        _address(router, "pod0", "198.51.100.1/24", "2001:db8:1::1/64")
        _address(router, "far0", "192.0.2.254/24", "2001:db8::fe/64")
        _address(pod, "eth0", "198.51.100.2/24", _POD6)
        _address(far, "eth0", *(f"{each}/24" for each in _FAR4), *(f"{each}/64" for each in _FAR6))
        for each, via4, via6 in ((pod, "198.51.100.1", _ROUTER6), (far, "192.0.2.254", "2001:db8::fe")):
            _call(*_inside(each, "ip", "route", "add", "default", "via", via4))
            _call(*_inside(each, "ip", "-6", "route", "add", "default", "via", via6))
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            _call(*_inside(router, "sysctl", "-qw", f"{key}=1"))
        # `ip netns exec` shows this file to the pod as /etc/resolv.conf.
        if not _ETC.exists():
            made.callback(_remove_if_empty, _ETC)
        (_ETC / pod).mkdir(parents=True)
        made.callback(shutil.rmtree, _ETC / pod)
        (_ETC / pod / "resolv.conf").write_text(
            f"search lab.example\nnameserver {RESOLVER}\noptions ndots:5\n"
        )
        listener = made.enter_context(
            subprocess.Popen(
                _inside(far, sys.executable, "-m", "sovereign_airgap.cli", "probe", "listen", *_LISTEN),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        made.callback(listener.terminate)
        assert listener.stderr is not None and "listening" in listener.stderr.readline()
        # Every name has the canary's addresses.
        serve = [sys.executable, "-m", "tests.unit.airgap.name_server", RESOLVER, OUTSIDE, OUTSIDE6]
        names = made.enter_context(
            subprocess.Popen(
                _inside(far, *serve, "--", CANARY, CANARY6), stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
        made.callback(names.terminate)
        assert names.stdout is not None and "serving" in names.stdout.readline()
        yield Lab(pod, router)


def paths_of(plan: str, lab: Lab, **environment: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What one run found: its paths, and the whole result."""
    ended = lab.run("probe", "run", "--plan-json", plan, environment=environment)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    return document["paths"], document


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _link(here: str, name: str, there: str, its_name: str) -> None:
    _call(*_inside(here, "ip", "link", "add", name, "type", "veth", "peer", "name", its_name, "netns", there))
    _call(*_inside(here, "ip", "link", "set", name, "up"))
    _call(*_inside(there, "ip", "link", "set", its_name, "up"))


def _address(namespace: str, link: str, *addresses: str) -> None:
    for address in addresses:
        _call(*_inside(namespace, "ip", "address", "add", address, "dev", link))


def _inside(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def _call(*command: str, text: str = "") -> str:
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout
