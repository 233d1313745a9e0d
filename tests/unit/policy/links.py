# SPDX-License-Identifier: Apache-2.0
"""A machine with a pod bridge and pods, all of it in network namespaces that go when the test ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dev.cluster.network import BRIDGE
from dev.policy.rules import render
from dev.policy.tables import Tables
from dev.policy.world import World
from tests.unit.policy.objects import PLACE, TABLES

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SILENCE = 0.3  # seconds after which a packet counts as dropped; links in memory need microseconds


def possible() -> bool:
    """Root on Linux with the tools, and a kernel that filters bridged packets."""
    return (
        os.geteuid() == 0
        and Path("/proc/sys/net/bridge").exists()
        and subprocess.run(["nft", "--version"], capture_output=True, check=False).returncode == 0
    )


class Machine:
    """One bridge; `pod(number)` has 10.244.0.<number> and fd00:10:244::<number>."""

    def __init__(self, own: bool = True) -> None:
        self._prefix = f"sov-{uuid.uuid4().hex[:6]}"
        self._made: list[str] = []
        self._sockets = contextlib.ExitStack()
        if not own:
            self.name = "self"
            Path("/run/netns/self").touch()
            subprocess.run(["mount", "--bind", "/proc/self/ns/net", "/run/netns/self"], check=True)
            self._made.append("self")
            return
        self.name = self._namespace("machine")
        self.ip("link", "add", BRIDGE, "type", "bridge")
        self.ip("link", "set", BRIDGE, "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1")
        self.ip("addr", "add", "10.244.0.1/16", "dev", BRIDGE)
        self.ip("addr", "add", "fd00:10:244::1/64", "dev", BRIDGE, "nodad")
        self.ip("link", "set", BRIDGE, "up")
        within(self.name, lambda: Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/forwarding").write_text("1"))

    @classmethod
    def around_this_one(cls) -> Machine:
        """The network namespace of this process as the machine; it has its bridge already."""
        return cls(own=False)

    def pod(self, number: int) -> str:
        """The network namespace of a new pod on the bridge."""
        name = self._namespace(f"pod{number}")
        self.ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        self.ip("link", "set", f"port{number}", "master", BRIDGE, "up")
        self.ip("link", "set", f"port{number}", "type", "bridge_slave", "hairpin", "on")
        for command in (
            "link set lo up",
            "link set eth0 up",
            f"addr add 10.244.0.{number}/16 dev eth0",
            f"addr add fd00:10:244::{number}/64 dev eth0 nodad",
            "route add default via 10.244.0.1",
            "-6 route add default via fd00:10:244::1",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True, capture_output=True)
        return name

    def enforce(self, world: World, *holes: str) -> None:
        Tables(TABLES, self.nft).replace(render(world, replace(PLACE, holes=holes)))

    def nft(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", "nft", *arguments],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
        assert not done.returncode, f"{done.stderr}\n{stdin}"
        return done.stdout

    def ip(self, *command: str) -> None:
        subprocess.run(["ip", "-n", self.name, *command], check=True, capture_output=True)

    def listen(self, pod: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket in the pod on all of its addresses, of both families."""

        def opened() -> socket.socket:
            listener = socket.socket(socket.AF_INET6, kind)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::", port))
            if kind == socket.SOCK_STREAM:
                listener.listen(16)
            return listener

        return self._sockets.enter_context(within(pod, opened))

    def close(self) -> None:
        self._sockets.close()
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _namespace(self, role: str) -> str:
        name = f"{self._prefix}-{role}"
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        self._made.append(name)
        return name


def present(machine: Machine) -> list[str]:
    """The agent's tables in the machine's kernel."""
    return Tables(TABLES, machine.nft).present()


def within(namespace: str, work: Callable[[], T]) -> T:
    """Run `work` in a network namespace (name or path), in a thread of its own; sockets made there stay."""

    def entered() -> T:
        with Path("/run/netns", namespace).open() as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {namespace}")
        return work()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(entered).result()


def connects(pod: str, address: str, port: int) -> bool:
    """Whether a TCP connection from the pod comes about."""

    def tried() -> bool:
        try:
            socket.create_connection((address, port), timeout=SILENCE).close()
        except OSError:
            return False
        return True

    return within(pod, tried)


def arrives(pod: str, address: str, port: int, listener: socket.socket) -> str | None:
    """The source address with which a datagram from the pod reaches the listener; None if it does not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    token = uuid.uuid4().bytes

    def sent() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.sendto(token, (address, port))

    within(pod, sent)
    listener.settimeout(SILENCE)
    try:
        while True:
            data, source = listener.recvfrom(64)
            if data == token:
                return str(source[0]).removeprefix("::ffff:")
    except TimeoutError:
        return None


def echoed(pod: str, address: str, port: int) -> str | None:
    """Who answered a datagram from the pod with the same bytes; None if nobody did."""

    def asked() -> str | None:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(SILENCE)
            try:
                one.sendto(b"anybody there?", (address, port))
                data, source = one.recvfrom(64)
            except OSError:
                return None
            return str(source[0]) if data == b"anybody there?" else None

    return within(pod, asked)


def pinged(pod: str, address: str) -> bool:
    """Whether an ICMP echo request from the pod is answered."""
    identifier = uuid.uuid4().bytes[:2]
    message = bytes([8, 0]) + bytes(2) + identifier + b"\x00\x01"
    words = sum(int.from_bytes(message[at : at + 2], "big") for at in range(0, len(message), 2))
    checksum = 0xFFFF - (words + (words >> 16)) % 0x10000
    message = message[:2] + checksum.to_bytes(2, "big") + message[4:]

    def asked() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(SILENCE)
            try:
                raw.sendto(message, (address, 0))
                while True:
                    answer = raw.recv(128)[20:]
                    if answer[0] == 0 and answer[4:6] == identifier:
                        return True
            except OSError:
                return False

    return within(pod, asked)


def machine() -> Iterator[Machine]:
    built = Machine()
    try:
        yield built
    finally:
        built.close()
