# SPDX-License-Identifier: Apache-2.0
"""The world as one nftables table; `tables` puts it in force as a whole. Pure.

Pods share a bridge, and per-bridge netfilter hands what it forwards to the inet `forward` hook after service
addresses were translated, so rules see pods. Egress and ingress are two chains at one hook: what the first
accepts, the second still judges.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dev.policy.selection import Direction, directions, peer_pods, selected
from dev.policy.world import Manifest, Pod, World

FAMILIES = ((4, "ip"), (6, "ip6"))
# Without these no IPv6 neighbour is found; they cannot be forwarded past the link.
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
# The pod's own end of a connection, and the other's, by direction.
_OWN: dict[Direction, str] = {"Egress": "saddr", "Ingress": "daddr"}
_OTHER: dict[Direction, str] = {"Egress": "daddr", "Ingress": "saddr"}


@dataclass(frozen=True)
class Place:
    """Where the rules go. Traffic to `api_port` of the node is judged as if the API server were elsewhere.

    `holes` are matches that always pass: defects, for tests of what finds them.
    """

    bridge: str
    api_port: int
    holes: tuple[str, ...] = ()


def render(world: World, place: Place) -> str:
    """A whole table as `nft -f` takes it after its name; the same world gives the same text."""
    policies = sorted(world.policies, key=lambda one: (one["metadata"]["namespace"], one["metadata"]["name"]))
    lines: list[str] = [*_known(world)]
    jumps: dict[Direction, dict[tuple[str, str], list[str]]] = {"Egress": {}, "Ingress": {}}
    for number, policy in enumerate(policies):
        for direction in directions(policy):
            pods = list(selected(policy, world))
            if not pods:
                continue
            chain = f"{direction.lower()}-policy-{number}"
            title = f"{policy['metadata']['namespace']}/{policy['metadata']['name']}"
            lines += _chain(chain, [f"# {title}", *_allowed(policy, direction, pods, world)])
            for pod in pods:
                jumps[direction].setdefault((pod.namespace, pod.name), []).append(chain)
    for direction in jumps:
        lines += _isolated(direction, jumps[direction], world)
    lines += _hooks(place)
    body = "\n".join(f"    {line}" for line in lines)
    return f"{{\n{body}\n}}\n"


def _known(world: World) -> Iterator[str]:
    """The addresses of pods; packets from and to any other on the bridge are dropped."""
    for version, family in FAMILIES:
        addresses = _addresses(world.pods, version)
        elements = f" elements = {{ {', '.join(addresses)} }}" if addresses else ""
        kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
        yield f"set pods{version} {{ type {kind};{elements} }}"


def _isolated(
    direction: Direction, jumps: Mapping[tuple[str, str], list[str]], world: World
) -> Iterator[str]:
    """A chain for each isolated pod, ending in a drop, and the chain that finds it by address."""
    finds: dict[int, list[str]] = {4: [], 6: []}
    isolated = [pod for pod in world.pods if (pod.namespace, pod.name) in jumps]
    for number, pod in enumerate(isolated):
        chain = f"{direction.lower()}-pod-{number}"
        for address in pod.addresses:
            finds[_version(address)].append(f"{address} : goto {chain}")
        rules = [f"# {pod.namespace}/{pod.name}"]
        # A pod can always reach itself, through a service too.
        rules += [f"{_family(address)} {_OTHER[direction]} {address} accept" for address in pod.addresses]
        rules += [*(f"jump {target}" for target in jumps[pod.namespace, pod.name]), "counter drop"]
        yield from _chain(chain, rules)
    judged = []
    for version, family in FAMILIES:
        end = f"{family} {_OWN[direction]}"
        judged.append(f"{end} != @pods{version} counter drop")
        if finds[version]:
            judged.append(f"{end} vmap {{ {', '.join(finds[version])} }}")
    yield from _chain(f"{direction.lower()}-judged", judged)


def _hooks(place: Place) -> Iterator[str]:
    always = ["ct state established,related accept", _NEIGHBOURS, *(f"{hole} accept" for hole in place.holes)]
    for name, priority, rule in (
        ("leaving", "filter", f'iifname "{place.bridge}" jump egress-judged'),
        ("arriving", "filter + 1", f'oifname "{place.bridge}" jump ingress-judged'),
    ):
        yield from _chain(
            name, [f"type filter hook forward priority {priority}; policy accept;", *always, rule]
        )
    # The node itself is always open to its pods; only the API server is not part of it.
    api = f'iifname "{place.bridge}" tcp dport {place.api_port} jump egress-judged'
    yield from _chain("node", ["type filter hook input priority filter; policy accept;", *always, api])


def _allowed(policy: Manifest, direction: Direction, pods: Sequence[Pod], world: World) -> Iterator[str]:
    """One `accept` for each pair of peer and port that the policy lists."""
    rules = policy["spec"].get(direction.lower()) or []
    for rule in rules:
        peers = rule.get("to" if direction == "Egress" else "from")
        targets = pods if direction == "Ingress" else world.pods
        for match in _peers(peers, direction, policy["metadata"]["namespace"], world):
            family = match.partition(" ")[0]
            for port in _ports(rule.get("ports"), targets, family):
                yield " ".join(part for part in (match, port, "accept") if part)


def _peers(peers: list[Manifest] | None, direction: Direction, namespace: str, world: World) -> Iterator[str]:
    """Matches on the other end's address; "" for everybody, which is what no list or an empty one means."""
    if not peers:
        yield ""
        return
    end = _OTHER[direction]
    for peer in peers:
        if block := peer.get("ipBlock"):
            yield _block(block, end)
            continue
        found = list(peer_pods(peer, namespace, world))
        for version, family in FAMILIES:
            if addresses := _addresses(found, version):
                yield f"{family} {end} {{ {', '.join(addresses)} }}"


def _block(block: Manifest, end: str) -> str:
    network = ipaddress.ip_network(block["cidr"], strict=False)
    family = dict(FAMILIES)[network.version]
    left_out = [str(ipaddress.ip_network(one, strict=False)) for one in block.get("except") or []]
    excepted = f" {family} {end} != {{ {', '.join(sorted(left_out))} }}" if left_out else ""
    return f"{family} {end} {network}{excepted}"


def _ports(ports: list[Manifest] | None, targets: Iterable[Pod], family: str) -> Iterator[str]:
    """Matches on the port; "" for every port and protocol. A name is looked up in each pod that answers."""
    if not ports:
        yield ""
        return
    for port in ports:
        protocol = port.get("protocol", "TCP")
        number = port.get("port")
        if number is None:
            yield f"meta l4proto {protocol.lower()}"
        elif isinstance(number, int):
            last = port.get("endPort", number)
            yield f"{protocol.lower()} dport {number if last == number else f'{number}-{last}'}"
        else:
            yield from _named(str(number), protocol, targets, family)


def _named(name: str, protocol: str, targets: Iterable[Pod], family: str) -> Iterator[str]:
    numbers: dict[int, list[Pod]] = {}
    for pod in targets:
        if (number := pod.ports.get((name, protocol))) is not None:
            numbers.setdefault(number, []).append(pod)
    for number, pods in sorted(numbers.items()):
        for version, own_family in FAMILIES:
            addresses = _addresses(pods, version)
            if addresses and family in ("", own_family):
                yield f"{own_family} daddr {{ {', '.join(addresses)} }} {protocol.lower()} dport {number}"


def _addresses(pods: Iterable[Pod], version: int) -> list[str]:
    found = {one for pod in pods for one in pod.addresses if _version(one) == version}
    return sorted(found, key=lambda one: int(ipaddress.ip_address(one)))


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _family(address: str) -> str:
    return dict(FAMILIES)[_version(address)]


def _chain(name: str, rules: Iterable[str]) -> Iterator[str]:
    yield f"chain {name} {{"
    yield from (f"    {rule}" for rule in rules)
    yield "}"
