# SPDX-License-Identifier: Apache-2.0
"""Asks the servers of resolv.conf, and them only: no search domains, no files, no cache.

The C library would add search domains to a name, and so tell an outside resolver about names of the cluster;
and it cannot be told how long to wait.
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sovereign_airgap.probe import dns
from sovereign_airgap.probe.attempts import exchange, strongest
from sovereign_airgap.probe.dns import Address, Answer
from sovereign_airgap.probe.payloads import dns_query
from sovereign_airgap.probe.result import Outcome

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_FILE_BYTES: Final = 64 * 1024
# As many as the C library asks.
_MOST_SERVERS: Final = 3
_MOST_ADDRESSES: Final = 4


@dataclass(frozen=True, slots=True)
class Resolver:
    """The servers that this pod was given."""

    servers: tuple[Address, ...]
    port: int = 53

    @classmethod
    def from_file(cls, path: Path = RESOLV_CONF) -> Self:
        """Without a readable file there are no servers."""
        try:
            with path.open("rb") as file:
                text = file.read(_FILE_BYTES).decode("utf-8", "replace")
        except OSError:
            return cls(())
        found: list[Address] = []
        for words in map(str.split, text.splitlines()):
            if len(words) >= 2 and words[0] == "nameserver" and "%" not in words[1]:
                try:
                    found.append(ipaddress.ip_address(words[1]))
                except ValueError:
                    continue
        return cls(tuple(found[:_MOST_SERVERS]))

    async def addresses(self, host: str, timeout: float) -> tuple[Address, ...]:  # noqa: ASYNC109
        """Those of an address or a full name, at most four; empty if no server gives one in time."""
        try:
            return (ipaddress.ip_address(host),)
        except ValueError:
            pass
        asked = [asyncio.ensure_future(self._from(server, host, timeout)) for server in self.servers]
        try:
            for each in asyncio.as_completed(asked):
                if found := await each:
                    return found
        finally:
            for task in asked:
                task.cancel()
        return ()

    async def try_name(self, name: str, timeout: float) -> Outcome:  # noqa: ASYNC109
        """REACHED if any server gives an address for the name; UNABLE only where there is none to ask."""
        answers = await asyncio.gather(
            *(self._ask(server, name, kind, timeout) for server in self.servers for kind in (dns.A, dns.AAAA))
        )
        return strongest(
            Outcome.DENIED if answer is not None and not answer.gives_an_address else outcome
            for outcome, answer in answers
        )

    async def _from(self, server: Address, name: str, timeout: float) -> tuple[Address, ...]:  # noqa: ASYNC109
        answers = await asyncio.gather(
            *(self._ask(server, name, kind, timeout) for kind in (dns.A, dns.AAAA))
        )
        given = (answer.addresses for _, answer in answers if answer is not None and answer.gives_an_address)
        return tuple(address for addresses in given for address in addresses[: _MOST_ADDRESSES // 2])

    async def _ask(
        self,
        server: Address,
        name: str,
        kind: int,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[Outcome, Answer | None]:
        sent = dns_query(name, kind)
        return await exchange(
            server, self.port, sent, timeout, lambda message: dns.read_answer(message, sent)
        )


async def try_dns(address: Address, port: int, name: str, timeout: float) -> Outcome:  # noqa: ASYNC109
    """REACHED when any answer to this query comes back, also one that refuses: it came from there."""
    sent = dns_query(name)
    outcome, _ = await exchange(address, port, sent, timeout, lambda message: dns.read_answer(message, sent))
    return outcome
