# SPDX-License-Identifier: Apache-2.0
"""DNS messages and the resolver: answers that are right, wrong, cut, forged, late, and none."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.probe import dns
from sovereign_airgap.probe.resolver import Resolver, try_dns
from sovereign_airgap.probe.result import Outcome
from tests.unit.airgap.name_server import (
    NO_NAME,
    REFUSED,
    SERVER_FAILED,
    NameServer,
    Respond,
    an_answer,
    name_in,
    zone,
)

LOCAL = ip_address("127.0.0.1")
TIMEOUT = 0.3
TRUNCATED = 0x0200


def tried(respond: Respond, name: str = "probe.example") -> Outcome:
    with NameServer(respond) as server:
        return asyncio.run(Resolver((LOCAL,), server.port).try_name(name, TIMEOUT))


def test_a_query_is_answered_by_the_canary_and_read_again() -> None:
    for kind, expected in ((dns.A, ("192.0.2.1",)), (dns.AAAA, ("2001:db8::1",)), (dns.TXT, ()), (15, ())):
        sent = dns.query(7, "A.Name.example.", kind)
        assert name_in(sent) == "A.Name.example"
        given = dns.answer_to(sent, dns.MESSAGE_BYTES)
        assert given is not None
        answer = dns.read_answer(given, sent)
        assert answer == dns.Answer(dns.NO_ERROR, False, tuple(map(ip_address, expected)))
        assert (b"sovereign-probe" in given) is (kind == dns.TXT)


def test_an_answer_without_room_says_so_and_is_no_longer_than_the_query() -> None:
    sent = dns.query(7, "probe.example", dns.AAAA)
    given = dns.answer_to(sent, len(sent))
    assert given is not None and len(given) == len(sent)
    answer = dns.read_answer(given, sent)
    assert answer is not None and answer.truncated and answer.gives_an_address
    assert dns.answer_to(sent, len(sent) - 1) is None


@given(st.binary(max_size=600))
def test_no_bytes_do_more_than_get_no_answer(message: bytes) -> None:
    given = dns.answer_to(message, len(message))
    assert given is None or len(given) <= len(message)


@given(st.binary(max_size=600), st.integers(0, 65535), st.integers(0, 0x7FFF))
def test_no_records_do_more_than_end_the_answer(records: bytes, count: int, flags: int) -> None:
    sent = dns.query(7, "probe.example", dns.A)
    message = sent[:2] + struct.pack("!5H", 0x8000 | flags, 1, count, 0, 0) + sent[12:] + records
    answer = dns.read_answer(message, sent)
    assert answer is None or len(answer.addresses) <= len(records) // 15


@given(st.binary(max_size=600))
def test_other_bytes_are_no_answer(message: bytes) -> None:
    sent = dns.query(7, "probe.example", dns.A)
    if not message.startswith(b"\0\7"):
        assert dns.read_answer(message, sent) is None


def test_a_name_with_an_address_is_reached_in_both_families() -> None:
    assert tried(zone({"probe.example": ["192.0.2.10"]})) is Outcome.REACHED
    assert tried(zone({"probe.example": ["2001:db8::10"]})) is Outcome.REACHED


@pytest.mark.parametrize("code", [NO_NAME, REFUSED, SERVER_FAILED, 0])
def test_an_answer_without_an_address_is_denied(code: int) -> None:
    assert tried(lambda query, name: [an_answer(query, code=code)]) is Outcome.DENIED


@pytest.mark.parametrize(
    "respond",
    [
        lambda query, name: [],
        lambda query, name: [b"", b"\0" * 11, query, an_answer(query, ["192.0.2.1"])[:30]],
        lambda query, name: [bytes([query[0] ^ 1]) + an_answer(query, ["192.0.2.1"])[1:]],  # forged
        lambda query, name: [an_answer(query[:13] + b"x" + query[14:], ["192.0.2.1"])],  # another question
        lambda query, name: [an_answer(query, [], count=65535)],
        lambda query, name: [an_answer(query, [], count=9) + b"\xc0\x0c" * 200],
        lambda query, name: [an_answer(query, ["192.0.2.1"], code=REFUSED)],
        lambda query, name: [b"x" * 1000] * 50,
    ],
    ids=["silent", "cut", "forged", "other", "claims", "pointers", "refusing", "flooding"],
)
def test_a_hostile_or_silent_server_is_denied_in_time(respond: Respond) -> None:
    assert tried(respond) is Outcome.DENIED


def test_a_cut_answer_to_a_name_is_reached() -> None:
    assert tried(lambda query, name: [an_answer(query, flags=TRUNCATED)]) is Outcome.REACHED


def test_a_lost_query_is_sent_three_times() -> None:
    lost: list[bytes] = []

    def respond(query: bytes, name: str) -> Sequence[bytes]:
        lost.append(query)
        return [an_answer(query, ["192.0.2.1"])] if lost.count(query) == 3 else []

    assert tried(respond) is Outcome.REACHED


def test_a_pod_without_servers_cannot_try_a_name() -> None:
    assert asyncio.run(Resolver(()).try_name("probe.example", TIMEOUT)) is Outcome.UNABLE
    assert asyncio.run(Resolver(()).addresses("probe.example", TIMEOUT)) == ()


def test_one_server_that_answers_is_enough() -> None:
    dead = ip_address("127.0.0.77")  # nothing listens there: refused
    with NameServer(zone({"c.example": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]})) as server:
        resolver = Resolver((dead, LOCAL), server.port)
        found = asyncio.run(resolver.addresses("c.example", 2))
        assert found == tuple(map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1")))
        assert asyncio.run(resolver.addresses("other.example", TIMEOUT)) == ()
        assert asyncio.run(resolver.addresses("192.0.2.7", TIMEOUT)) == (ip_address("192.0.2.7"),)
        assert set(server.seen) == {"c.example", "other.example"}, "no search domain is ever added"


def test_any_answer_of_a_server_that_is_asked_directly_counts() -> None:
    with NameServer(lambda query, name: [an_answer(query, code=REFUSED)]) as server:
        assert asyncio.run(try_dns(LOCAL, server.port, "probe.example", TIMEOUT)) is Outcome.REACHED
    with NameServer(lambda query, name: [b"no DNS"]) as server:
        assert asyncio.run(try_dns(LOCAL, server.port, "probe.example", TIMEOUT)) is Outcome.DENIED


def test_the_servers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(
        b"# nameserver 192.0.2.1\nsearch a b\nnameserver 192.0.2.2\nnameserver\nnameserver fe80::1%eth0\n"
        b"nameserver x\n\xff\xfe\nnameserver 2001:db8::1 # more\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n"
    )
    servers = tuple(map(ip_address, ("192.0.2.2", "2001:db8::1", "192.0.2.3")))
    assert Resolver.from_file(path) == Resolver(servers, 53)
    assert Resolver.from_file(tmp_path / "none") == Resolver(())
