# SPDX-License-Identifier: Apache-2.0
"""A DOUBLE of a DNS server: answers over UDP with what a test says, right or wrong.

Also a program: `python -m tests.unit.airgap.name_server ADDRESS… -- ANSWER…` listens on port 53 of each
address and gives the answers for every name.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

NO_ERROR, FORMAT_ERROR, SERVER_FAILED, NO_NAME, REFUSED = 0, 1, 2, 3, 5
# Gets the query and its name; returns the datagrams to send back, none for silence.
Respond = Callable[[bytes, str], Sequence[bytes]]


def name_in(query: bytes) -> str:
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii"))
        at += 1 + query[at]
    return ".".join(labels)


def an_answer(
    query: bytes,
    addresses: Sequence[str] = (),
    code: int = NO_ERROR,
    *,
    flags: int = 0,
    count: int | None = None,
) -> bytes:
    """The answer with those addresses that the query's type wants; `count` is what the header claims."""
    kind = int.from_bytes(query[-4:-2])
    packed = [ipaddress.ip_address(each).packed for each in addresses]
    data = [each for each in packed if len(each) == {1: 4, 28: 16}.get(kind)]
    records = b"".join(struct.pack("!3HIH", 0xC00C, kind, 1, 5, len(each)) + each for each in data)
    counts = (1, len(data) if count is None else count, 0, 0)
    return query[:2] + struct.pack("!5H", 0x8180 | flags | code, *counts) + query[12:] + records


def zone(names: dict[str, Sequence[str]]) -> Respond:
    """Answers these names; for all others there is no such name."""

    def respond(query: bytes, name: str) -> Sequence[bytes]:
        found = names.get(name)
        return [an_answer(query, code=NO_NAME) if found is None else an_answer(query, found)]

    return respond


class NameServer:
    """Listens while the block lasts; `seen` has the names that were asked."""

    def __init__(self, respond: Respond, address: str = "127.0.0.1", port: int = 0) -> None:
        self.respond = respond
        self.seen: list[str] = []
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A datagram wakes the thread, and an empty one ends it.
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as waking:
            waking.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            if len(query) < 17:
                continue
            self.seen.append(name_in(query))
            for datagram in self.respond(query, self.seen[-1]):
                self._socket.sendto(datagram, sender)


def main(arguments: Sequence[str]) -> None:
    at = arguments.index("--")
    answers = arguments[at + 1 :]
    servers = [
        NameServer(lambda query, name: [an_answer(query, answers)], each, 53) for each in arguments[:at]
    ]
    for server in servers:
        server._thread.start()
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
