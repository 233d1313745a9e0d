# SPDX-License-Identifier: Apache-2.0
"""What canary and peer run: answers TCP, UDP and DNS with a few bytes to anybody.

Everybody in the cluster may talk to a canary, so nobody may wear it out or use it against others. No answer
over UDP is longer than what it answers, and none goes to a port where another server (or another canary)
would answer it again. There are at most CONNECTIONS connections at a time: the oldest gives way to the next.
Nothing that a client sends is kept, logged or believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from sovereign_airgap.errors import PortUnavailable
from sovereign_airgap.probe import dns

CONNECTIONS: Final = 64
CONNECTION_SECONDS: Final = 2.0
DATAGRAM_BYTES: Final = 64

# Shorter than CONNECTION_SECONDS, so that a client that says nothing still gets its line.
_GREETING_SECONDS: Final = 0.5
_GREETING = re.compile(rb"[A-Za-z0-9-]{1,40}")
_GREETING_BYTES: Final = 64
_DATAGRAMS_AT_ONCE: Final = 32
_READ_BYTES: Final = 2048
# Below are servers' ports: an answer sent there could be answered, and so on for ever.
_CLIENT_PORTS: Final = 1024
# A connection counts as reached once the kernel has it, so a flood must fill this first.
_BACKLOG: Final = 1024
_PAUSE_SECONDS: Final = 0.1

_IP_PKTINFO: Final = 8  # the socket module has it from Python 3.12 on
_TELL_ADDRESS: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
}
_CONTROL_BYTES: Final = socket.CMSG_SPACE(20)
_MULTICAST: Final = 0xFF

Respond = Callable[[socket.socket], Awaitable[None]]


class Listener:
    """Open ports, answered while `serve` runs. Port 0 stands for any free one, the same for IPv4 and IPv6."""

    def __init__(self, tcp: Iterable[int], udp: Iterable[int], dns_ports: Iterable[int]) -> None:
        """Opens every port, or raises PortUnavailable naming the one that could not be had."""
        self._streams: list[tuple[socket.socket, Respond]] = []
        self._datagrams: list[tuple[socket.socket, Callable[[bytes], bytes | None]]] = []
        self._connections: dict[asyncio.Task[None], None] = {}
        with contextlib.ExitStack() as opened:
            for port in tcp:
                self._streams += [(each, _greet) for each in _open(port, socket.SOCK_STREAM, opened)]
            for port in udp:
                self._datagrams += [(each, _echo) for each in _open(port, socket.SOCK_DGRAM, opened)]
            for port in dns_ports:
                datagrams = _open(port, socket.SOCK_DGRAM, opened)
                self._datagrams += [(each, _dns_datagram) for each in datagrams]
                port = _port(datagrams[0])
                self._streams += [(each, _dns_stream) for each in _open(port, socket.SOCK_STREAM, opened)]
            self._opened = opened.pop_all()
        self.ports = tuple(_port(each) for each, _ in [*self._streams, *self._datagrams])

    @property
    def connections(self) -> int:
        """How many are open now; at most CONNECTIONS."""
        return len(self._connections)

    async def serve(self) -> None:
        """Answers until it is cancelled, then closes everything."""
        loop = asyncio.get_running_loop()
        accepting = [asyncio.ensure_future(self._accept(*stream)) for stream in self._streams]
        for listening, respond in self._datagrams:
            loop.add_reader(listening, self._answer, listening, respond)
        try:
            await asyncio.gather(*accepting)
        finally:
            for listening, _ in self._datagrams:
                loop.remove_reader(listening)
            for task in [*accepting, *self._connections]:
                task.cancel()
            await asyncio.gather(*accepting, *self._connections, return_exceptions=True)
            self.close()

    def close(self) -> None:
        self._opened.close()

    async def _accept(self, listening: socket.socket, respond: Respond) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                # The client is gone already, or there is no memory or descriptor left for another one.
                if error.errno not in (errno.ECONNABORTED, errno.EPROTO):
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            while len(self._connections) >= CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                oldest.cancel()
                await asyncio.sleep(0)
            task = asyncio.ensure_future(_bounded(connection, respond))
            self._connections[task] = None
            task.add_done_callback(partial(self._ended, connection))
            # An accept that need not wait does not let others in, and a flood never makes it wait.
            await asyncio.sleep(0)

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        """Closes here, because a task that was cancelled before its first step never ran."""
        self._connections.pop(task, None)
        connection.close()

    def _answer(self, listening: socket.socket, respond: Callable[[bytes], bytes | None]) -> None:
        """Reads some datagrams, not all, so that a flood on one port leaves time for the others."""
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                message, control, _, sender = listening.recvmsg(_READ_BYTES, _CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an answer of before came back as an ICMP error
                continue
            source = _answers_from(control)
            if source is None or sender[1] < _CLIENT_PORTS or sender[1] in self.ports:
                continue
            answer = respond(message)
            if answer is not None and len(answer) <= len(message):
                # A full buffer drops it, as the network would: nothing is kept for later.
                with contextlib.suppress(OSError):
                    listening.sendmsg([answer], [source], 0, sender)


async def _bounded(connection: socket.socket, respond: Respond) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):  # a timeout is an OSError too
        async with asyncio.timeout(CONNECTION_SECONDS):
            await respond(connection)


async def _greet(connection: socket.socket) -> None:
    """One line with the word that the client sent first, `-` if it sent none or something else."""
    loop = asyncio.get_running_loop()
    said = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GREETING_SECONDS):
            async for piece in _pieces(connection, _GREETING_BYTES):
                said += piece
                if b"\n" in said:
                    break
    found = _GREETING.fullmatch(said.partition(b"\n")[0].rstrip(b"\r"))
    await loop.sock_sendall(connection, b"sovereign-probe %b\n" % (found[0] if found else b"-"))


async def _dns_stream(connection: socket.socket) -> None:
    """One query and its answer, each behind its length in two bytes."""
    said = b""
    async for piece in _pieces(connection, 2 + dns.MESSAGE_BYTES):
        said += piece
        length = int.from_bytes(said[:2]) if len(said) >= 2 else dns.MESSAGE_BYTES
        if length > dns.MESSAGE_BYTES:
            return
        if len(said) >= 2 + length:
            answer = dns.answer_to(said[2 : 2 + length], dns.MESSAGE_BYTES)
            if answer is not None:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(connection, len(answer).to_bytes(2) + answer)
            return


def _echo(message: bytes) -> bytes:
    return message[:DATAGRAM_BYTES]


def _dns_datagram(message: bytes) -> bytes | None:
    """An answer no longer than the query: without room (EDNS options, say) it sends the client to TCP."""
    return dns.answer_to(message, len(message))


def _answers_from(control: list[tuple[int, int, bytes]]) -> tuple[int, int, bytes] | None:
    """What makes the answer leave from the address that was asked; None if many were asked at once.

    A machine with several addresses would else answer from its first, and be taken for a stranger.
    """
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, asked = struct.unpack("@i4s4s", data)
            return (level, kind, struct.pack("@i4s4s", 0, local, local)) if local == asked else None
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return None if data[0] == _MULTICAST else (level, kind, data)
    return None


async def _pieces(connection: socket.socket, most: int) -> AsyncIterator[bytes]:
    """What a client sends, until it ends or `most` bytes have come."""
    loop = asyncio.get_running_loop()
    while most > 0 and (piece := await loop.sock_recv(connection, most)):
        most -= len(piece)
        yield piece


def _open(port: int, kind: socket.SocketKind, opened: contextlib.ExitStack) -> list[socket.socket]:
    """A socket for IPv4 and one for IPv6, on any address; one of them where the machine has only that."""
    found: list[socket.socket] = []
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            continue
        opened.enter_context(made)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_DGRAM:
                made.setsockopt(*_TELL_ADDRESS[family], 1)
            made.bind((any_address, port or (_port(found[0]) if found else 0)))
            if kind == socket.SOCK_STREAM:
                made.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:  # the family is compiled in and switched off
                continue
            raise PortUnavailable(
                f"Expected port {port} to be free, but {error.strerror}: choose another."
            ) from error
        found.append(made)
    if not found:
        raise PortUnavailable(
            f"Expected to listen on port {port}, but this machine has neither IPv4 nor IPv6."
        )
    return found


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])
