# SPDX-License-Identifier: Apache-2.0
"""The canary: it answers whoever asks, and nobody can wear it out or use it against others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sovereign_airgap.errors import PortUnavailable
from sovereign_airgap.probe import dns, listen
from sovereign_airgap.probe.listen import CONNECTIONS, DATAGRAM_BYTES, Listener

HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stops for a second must not look like a client that says nothing."""
    monkeypatch.setattr(listen, "_GREETING_SECONDS", 30.0)
    monkeypatch.setattr(listen, "CONNECTION_SECONDS", 60.0)


def a_free_one() -> Listener:
    """Any free port must be free for both families and, for DNS, for both protocols: not every one is."""
    for _ in range(20):
        with contextlib.suppress(PortUnavailable):
            return Listener([0], [0], [0])
    raise AssertionError("no port is free")


@asynccontextmanager
async def a_listener() -> AsyncIterator[Listener]:
    listener = a_free_one()
    serving = asyncio.ensure_future(listener.serve())
    try:
        yield listener
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()  # a task that was cancelled before its first step closed nothing


def ports(listener: Listener) -> tuple[int, int, int]:
    """TCP, UDP, DNS; each stands there twice, for IPv4 and IPv6."""
    tcp, _, _, _, udp, _, name, *_ = listener.ports
    return tcp, udp, name


async def said(host: str, port: int, *greeting: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for piece in greeting:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(1000), 30)
    finally:
        writer.close()


async def answered(host: str, port: int, message: bytes, seconds: float = 30) -> bytes | None:
    """The datagram that comes back, None if nothing does."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect((host, port))
        await loop.sock_sendall(asking, message)
        try:
            return await asyncio.wait_for(loop.sock_recv(asking, 2000), seconds)
        except TimeoutError:
            return None


@pytest.mark.parametrize("host", HOSTS)
async def test_it_answers_over_every_protocol_and_family(host: str) -> None:
    async with a_listener() as listener:
        tcp, udp, name = ports(listener)
        assert await said(host, tcp, b"nonce-1\n") == b"sovereign-probe nonce-1\n"
        assert await answered(host, udp, b"x" * 1200) == b"x" * DATAGRAM_BYTES
        query = dns.query(9, "any.example", dns.A)
        over_udp = await answered(host, name, query)
        assert over_udp is not None and len(over_udp) <= len(query)
        cut = dns.read_answer(over_udp, query)
        assert cut is not None and cut.truncated
        over_tcp = await said(host, name, len(query).to_bytes(2), query)
        answer = dns.read_answer(over_tcp[2:], query)
        assert answer is not None and [str(each) for each in answer.addresses] == ["192.0.2.1"]


async def test_a_query_with_room_for_it_gets_its_answer_over_udp() -> None:
    query = dns.query(9, "any.example", dns.A) + bytes(16)
    async with a_listener() as listener:
        given = await answered("127.0.0.1", ports(listener)[2], query)
    assert given is not None and len(given) == len(query)
    answer = dns.read_answer(given, query[:-16])
    assert answer is not None and answer.addresses and not answer.truncated


@pytest.mark.parametrize(
    "greeting", [b"", b"\n", b"a b\n", b"\xff" * 64, b"<script>\r\n", b"x" * 64, b"x" * 9999]
)
async def test_what_a_client_says_is_not_repeated_unless_it_is_a_plain_word(
    greeting: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "_GREETING_SECONDS", 0.2)
    async with a_listener() as listener:
        try:
            assert await said("127.0.0.1", ports(listener)[0], greeting) == b"sovereign-probe -\n"
        except ConnectionError:
            assert len(greeting) > 64, "only who says more than is read is cut off"


async def test_garbage_to_the_dns_port_is_left_unanswered() -> None:
    async with a_listener() as listener:
        name = ports(listener)[2]
        response = bytearray(dns.query(9, "any.example", dns.A))
        response[2] |= 0x80  # an answer to an answer could go on for ever
        for message in (b"x", bytes(response), b"\xff" * 512):
            assert await answered("127.0.0.1", name, message, 0.1) is None
        assert await said("127.0.0.1", name, b"\xff\xff", b"x" * 100) == b""


async def test_no_answer_goes_where_another_canary_would_answer_it_again() -> None:
    async with a_listener() as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind(("127.0.0.2", 0))
            asking.setblocking(False)
            # The same port as one of its own, as it would be on another canary.
            listener.ports += (asking.getsockname()[1],)
            asking.sendto(b"x", ("127.0.0.1", ports(listener)[1]))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 10), 0.2)
        assert await answered("127.0.0.1", ports(listener)[1], b"x") == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="low ports need root")
async def test_no_answer_goes_to_a_port_of_servers() -> None:
    async with a_listener() as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind(("127.0.0.2", 7))
            asking.setblocking(False)
            asking.sendto(b"x", ("127.0.0.1", ports(listener)[1]))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 10), 0.2)


async def test_clients_that_say_nothing_never_keep_others_out() -> None:
    loop = asyncio.get_running_loop()
    async with a_listener() as listener:
        tcp, udp, name = ports(listener)
        slow = []
        try:
            for _ in range(CONNECTIONS * 4):
                silent = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                slow.append(silent)
                silent.setblocking(False)
                await loop.sock_connect(silent, ("127.0.0.1", name))
                assert listener.connections <= CONNECTIONS
            assert await said("127.0.0.1", tcp, b"me\n") == b"sovereign-probe me\n"
            assert await answered("127.0.0.1", udp, b"me") == b"me"
        finally:
            for each in slow:
                each.close()


async def test_a_connection_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CONNECTION_SECONDS", 0.2)
    async with a_listener() as listener:
        name = ports(listener)[2]
        assert await said("127.0.0.1", name, b"\0\x40") == b""
        while listener.connections:  # noqa: ASYNC110  (it has nobody to tell)
            await asyncio.sleep(0.01)


async def test_without_free_descriptors_it_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(listen, "_GREETING_SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with a_listener() as listener:
        tcp = ports(listener)[0]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            try:
                await asyncio.get_running_loop().sock_connect(asking, ("127.0.0.1", tcp))
                await asyncio.sleep(0.05)  # the time in which it cannot
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert await asyncio.get_running_loop().sock_recv(asking, 100) == b"sovereign-probe -\n"


async def test_a_flood_of_datagrams_leaves_the_other_ports_their_turn() -> None:
    async with a_listener() as listener:
        tcp, udp, _ = ports(listener)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooding:
            flooding.connect(("127.0.0.1", udp))
            for _ in range(5000):
                flooding.send(b"x" * 64)
            assert await said("127.0.0.1", tcp, b"me\n") == b"sovereign-probe me\n"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortUnavailable, match=f"Expected port {port} to be free"):
            Listener([port], [], [])


def test_the_program_answers_and_ends_at_once_on_sigterm() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("0.0.0.0", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "sovereign_airgap.cli", "probe", "listen", "--tcp", port],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None and process.stderr.readline() == f"listening on {port}\n"
        with socket.create_connection(("127.0.0.1", int(port)), 30):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert process.stderr.read() == ""
