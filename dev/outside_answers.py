# SPDX-License-Identifier: Apache-2.0
"""Answers as the world would, on every port that a probe tries: a test double, run by `dev.outside`.

TCP: one line, then the end. UDP: the datagram comes back, at most 64 bytes of it; on port 53 as a DNS answer
that says of every name that it is our web address. ICMP is the kernel's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import struct
from functools import partial
from typing import cast

from dev.cluster.state import KUBELET_PORT
from dev.outside import METADATA, TCP_PORTS, UDP_PORTS, WEB, WEB6

GREETING = b"This is a double of the outside world; you got out.\n"
AT_ONCE, PATIENCE = 64, 2.0
_A, _AAAA, _TXT = 1, 28, 16


def dns_answer(query: bytes) -> bytes | None:
    """A DNS answer for a query with one question, None for what is no such query."""
    if len(query) < 17 or query[2] & 0x80 or struct.unpack(">H", query[4:6]) != (1,):
        return None
    end = 12
    while end < len(query) and query[end]:
        if query[end] > 63:
            return None
        end += query[end] + 1
    question = query[12 : end + 5]
    if len(question) != end + 5 - 12:
        return None
    kind = struct.unpack(">H", question[-4:-2])[0]
    data = {
        _A: ipaddress.ip_address(WEB).packed,
        _AAAA: ipaddress.ip_address(WEB6).packed,
        _TXT: b"\x06double",
    }.get(kind)
    record = b"" if data is None else struct.pack(">HHHIH", 0xC00C, kind, 1, 5, len(data)) + data
    header = query[:2] + struct.pack(">5H", 0x8180, 1, int(data is not None), 0, 0)
    return header + question + record


class Echo(asyncio.DatagramProtocol):
    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        answer = dns_answer(data) if self._port == 53 else data[:64]
        if answer and self._transport:
            self._transport.sendto(answer, address)


async def serve(addresses: list[str], kubelet: str) -> None:
    """Listen on the addresses (of either family) and on `kubelet` until the process ends."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with slots:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    writer.write(GREETING)
                    await writer.drain()
            writer.close()

    loop = asyncio.get_running_loop()
    for port in TCP_PORTS:
        await asyncio.start_server(greet, [*addresses, METADATA], port)
    await asyncio.start_server(greet, kubelet, KUBELET_PORT)
    for port in UDP_PORTS:
        for address in addresses:
            await loop.create_datagram_endpoint(partial(Echo, port), (address, port))
    print("a double of the outside world answers", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.outside_answers", description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="where all ports answer")
    parser.add_argument("--kubelet", required=True, help="the address whose kubelet port answers")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.addresses, arguments.kubelet))


if __name__ == "__main__":
    main()
