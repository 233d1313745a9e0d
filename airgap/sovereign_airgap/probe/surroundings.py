# SPDX-License-Identifier: Apache-2.0
"""What a pod knows about where it runs, and the attempts at its canary and its peer."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from sovereign_airgap.probe.attempts import strongest, try_echo, try_tcp, try_udp
from sovereign_airgap.probe.dns import Address
from sovereign_airgap.probe.plan import (
    CANARY_PATHS,
    DNS_PORT,
    NODE,
    PEER_PATHS,
    TCP_PORT,
    UDP_PORT,
    Protocol,
    Target,
)
from sovereign_airgap.probe.resolver import Resolver, try_dns
from sovereign_airgap.probe.result import Outcome

# Seconds that looking up a name may take at most: the resolver is in the cluster.
_LOOKUP_SECONDS = 2.0
_CANARY_NAME = "sovereign-canary.example"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where canary and peer listen."""

    tcp: int = TCP_PORT
    udp: int = UDP_PORT
    dns: int = DNS_PORT


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The pod's node (`addresses` empty if it was not told), its resolver, and where others listen."""

    node_name: str = ""
    node_addresses: tuple[Address, ...] = ()
    resolver: Resolver = field(default_factory=lambda: Resolver(()))
    ports: Ports = field(default_factory=Ports)

    @classmethod
    def of_pod(cls, environment: Mapping[str, str]) -> Self:
        """From NODE_NAME, NODE_IP (one address, or several with commas) and the pod's resolv.conf."""
        addresses: list[Address] = []
        for text in environment.get("NODE_IP", "").split(",")[:4]:
            try:
                addresses.append(ipaddress.ip_address(text.strip()))
            except ValueError:
                continue
        return cls(environment.get("NODE_NAME", ""), tuple(addresses), Resolver.from_file())

    async def try_target(self, target: Target, tunnel: str, timeout: float) -> Outcome:  # noqa: ASYNC109
        """Tries one target of a plan; `tunnel` is the label that carries data out in a name. Seconds."""
        if target.protocol is Protocol.RESOLVE:
            assert target.query is not None
            return strongest(
                await asyncio.gather(
                    self.resolver.try_name(target.query, timeout),
                    self.resolver.try_name(f"{tunnel}.{target.query}", timeout),
                )
            )
        assert target.address is not None
        if target.address == NODE:
            addresses = self.node_addresses
        else:
            addresses = await self._addresses(target.address, timeout)
        return strongest(
            await asyncio.gather(*(_try_address(target, address, timeout) for address in addresses))
        )

    async def try_canary(self, host: str, timeout: float) -> dict[str, Outcome]:  # noqa: ASYNC109
        """The three paths, each REACHED if one of the host's addresses answered, UNABLE if it has none."""
        addresses = await self._addresses(host, timeout)
        tcp, udp, dns = await asyncio.gather(
            _over_all(addresses, lambda address: try_tcp(address, self.ports.tcp, timeout)),
            _over_all(addresses, lambda address: try_udp(address, self.ports.udp, timeout)),
            _over_all(addresses, lambda address: try_dns(address, self.ports.dns, _CANARY_NAME, timeout)),
        )
        return dict(zip(CANARY_PATHS, (tcp, udp, dns), strict=True))

    async def try_peer(self, host: str, timeout: float) -> dict[str, Outcome]:  # noqa: ASYNC109
        """The two paths to the peer, as `try_canary` has them."""
        addresses = await self._addresses(host, timeout)
        tcp, udp = await asyncio.gather(
            _over_all(addresses, lambda address: try_tcp(address, self.ports.tcp, timeout)),
            _over_all(addresses, lambda address: try_udp(address, self.ports.udp, timeout)),
        )
        return dict(zip(PEER_PATHS, (tcp, udp), strict=True))

    async def _addresses(self, host: str, timeout: float) -> tuple[Address, ...]:  # noqa: ASYNC109
        return await self.resolver.addresses(host, min(timeout, _LOOKUP_SECONDS))


async def _over_all(
    addresses: tuple[Address, ...], attempt: Callable[[Address], Awaitable[Outcome]]
) -> Outcome:
    return strongest(await asyncio.gather(*map(attempt, addresses)))


async def _try_address(target: Target, address: Address, timeout: float) -> Outcome:  # noqa: ASYNC109
    if target.protocol is Protocol.ICMP:
        return await try_echo(address, timeout)
    assert target.port is not None
    if target.protocol is Protocol.TCP:
        return await try_tcp(address, target.port, timeout)
    if target.protocol is Protocol.UDP:
        return await try_udp(address, target.port, timeout)
    assert target.query is not None
    return await try_dns(address, target.port, target.query, timeout)
