# SPDX-License-Identifier: Apache-2.0
"""One attempt at one address over one protocol, and what it proves.

An error counts as a denial only if the network or its rules gave it. Whatever says that this pod could not
even try (no such address family, no right to a ping socket, no memory) proves nothing and is `unable`.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from sovereign_airgap.probe.dns import Address
from sovereign_airgap.probe.payloads import datagram_for, echo_request, is_echo_reply
from sovereign_airgap.probe.result import Outcome

T = TypeVar("T")

# A lost datagram proves nothing, so it is sent this often.
SENDINGS: Final = 3
_READ_BYTES: Final = 2048
_GLOBAL_SCOPE: Final = "00"
_SIOCGIFADDR: Final = 0x8915
_DENIALS: Final = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
        errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENONET,
        errno.ETIMEDOUT, errno.ENOPROTOOPT, errno.EPROTO, errno.EOPNOTSUPP, errno.EPIPE,
    }
)  # fmt: skip


def strongest(outcomes: Iterable[Outcome]) -> Outcome:
    """One answer is enough to have reached something; one denial outweighs what could not be tried."""
    found = set(outcomes)
    if Outcome.REACHED in found:
        return Outcome.REACHED
    return Outcome.DENIED if Outcome.DENIED in found else Outcome.UNABLE


async def try_tcp(address: Address, port: int, timeout: float) -> Outcome:  # noqa: ASYNC109  (it is the attempt)
    """REACHED once the connection stands; it is closed at once, nothing is sent."""
    found = _socket(address, socket.SOCK_STREAM)
    if isinstance(found, Outcome):
        return found
    with found as connection:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        except OSError as error:
            return _meaning(error)
    return Outcome.REACHED


async def try_udp(address: Address, port: int, timeout: float) -> Outcome:  # noqa: ASYNC109
    """REACHED when any datagram comes back from there."""
    outcome, _ = await exchange(address, port, datagram_for(port), timeout, lambda message: message)
    return outcome


async def try_echo(address: Address, timeout: float) -> Outcome:  # noqa: ASYNC109
    """REACHED when the echo reply comes; a kernel that gives this user no ping socket is UNABLE."""
    protocol = socket.IPPROTO_ICMP if address.version == 4 else socket.IPPROTO_ICMPV6
    sent = echo_request(address.version)

    def read(message: bytes) -> bytes | None:
        return message if is_echo_reply(message, sent) else None

    outcome, _ = await exchange(address, 0, sent, timeout, read, protocol)
    return outcome


async def exchange(
    address: Address,
    port: int,
    payload: bytes,
    timeout: float,  # noqa: ASYNC109
    read: Callable[[bytes], T | None],
    protocol: int = 0,
) -> tuple[Outcome, T | None]:
    """Sends a datagram until `read` takes what comes back; strangers' datagrams do not count.

    The time in seconds is for all sendings together.
    """
    found = _socket(address, socket.SOCK_DGRAM, protocol)
    if isinstance(found, Outcome):
        return found, None
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with found as connection:
        try:
            connection.connect((str(address), port))
            for sending in range(1, SENDINGS + 1):
                try:
                    async with asyncio.timeout_at(begun + timeout * sending / SENDINGS):
                        await loop.sock_sendall(connection, payload)
                        while True:
                            answer = read(await loop.sock_recv(connection, _READ_BYTES))
                            if answer is not None:
                                return Outcome.REACHED, answer
                            # A flood of wrong answers must not keep everything else from being read.
                            await asyncio.sleep(0)
                except TimeoutError:
                    continue
        except OSError as error:
            return _meaning(error), None
    return Outcome.DENIED, None


def _socket(address: Address, kind: int, protocol: int = 0) -> socket.socket | Outcome:
    """A socket for `address` that does not block; UNABLE where this pod cannot have one."""
    if not _has_family(address):
        return Outcome.UNABLE
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except OSError:
        return Outcome.UNABLE
    return made


def _meaning(error: OSError) -> Outcome:
    if isinstance(error, TimeoutError) or error.errno in _DENIALS:
        return Outcome.DENIED
    return Outcome.UNABLE


def _has_family(address: Address) -> bool:
    """Whether this pod has an address of the same family from which the other is in reach at all.

    Without one the kernel says "network unreachable", as a route that forbids does.
    """
    if address.is_loopback or address.is_link_local:
        return True
    return _has_ipv4() if address.version == 4 else _has_ipv6()


def _has_ipv6() -> bool:
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    # address, index, prefix length, scope, flags, name
    return any(fields[3] == _GLOBAL_SCOPE and fields[5] != "lo" for fields in map(str.split, lines))


def _has_ipv4() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("16s24x", name.encode()[:15]))
            try:
                fcntl.ioctl(asking, _SIOCGIFADDR, request)
            except OSError:
                continue
            if name != "lo":
                return True
    return False
