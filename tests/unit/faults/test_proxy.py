# SPDX-License-Identifier: Apache-2.0
"""The faults are what they say: a fault that does not strike would make every test behind it pass."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev.hub import HubServer
from tests.unit.faults import proxy
from tests.unit.faults.proxy import FaultyProxy

BODY = bytes(range(256)) * 300
FILE = "/api/resolve-cache/models/acme/tiny/main/config.json"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    folder = tmp_path / "hub/acme/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(BODY)
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def faulty(hub: HubServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(hub.endpoint) as server:
        yield server


def get(faulty: FaultyProxy, timeout: float = 10, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(faulty.url).netloc, timeout=timeout)
    try:
        connection.request("GET", FILE, headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_without_a_fault_everything_passes(faulty: FaultyProxy) -> None:
    response, body = get(faulty)
    assert (response.status, body) == (200, BODY)
    part, some = get(faulty, Range="bytes=3-9")
    assert (part.status, some) == (206, BODY[3:10])


def test_a_fault_strikes_as_often_as_it_is_told_and_not_after_it_is_healed(faulty: FaultyProxy) -> None:
    faulty.break_(proxy.Answer(500), times=2, after=1)
    assert [get(faulty)[0].status for _ in range(4)] == [200, 500, 500, 200]

    faulty.break_(proxy.Answer(503))
    assert [get(faulty)[0].status for _ in range(2)] == [503, 503]
    faulty.heal()
    assert get(faulty)[0].status == 200
    assert faulty.struck == 4


def test_a_fault_strikes_only_what_it_is_for(faulty: FaultyProxy) -> None:
    faulty.break_(proxy.Answer(500), path="/other").break_(proxy.Answer(500), method="PUT")

    assert get(faulty)[0].status == 200
    assert faulty.struck == 0


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (proxy.flip(2), BODY[:2] + b"\x03" + BODY[3:]),
        (proxy.shorten(5), BODY[:-5]),
        (proxy.lengthen(5), BODY + b"\0" * 5),
    ],
)
def test_changed_bodies_are_consistent_with_their_length(
    faulty: FaultyProxy, by: proxy.Edit, expected: bytes
) -> None:
    faulty.break_(proxy.Change(by))
    assert get(faulty)[1] == expected


def test_a_cut_answer_ends_early(faulty: FaultyProxy) -> None:
    faulty.break_(proxy.Cut(after=1000))
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(faulty)
    assert cut.value.partial == BODY[:1000]


def test_a_hanging_answer_sends_nothing_more(faulty: FaultyProxy) -> None:
    faulty.break_(proxy.Hang(after=10))
    with pytest.raises(TimeoutError):
        get(faulty, timeout=0.2)


def test_a_silent_answer_was_carried_out_too(faulty: FaultyProxy, hub: HubServer) -> None:
    faulty.break_(proxy.Silence())
    with pytest.raises(TimeoutError):
        get(faulty, timeout=3)
    assert len(hub.requests) == 1


def test_an_ignored_range_is_a_200(faulty: FaultyProxy) -> None:
    faulty.break_(proxy.IgnoreRange())
    response, body = get(faulty, Range="bytes=3-9")
    assert (response.status, body) == (200, BODY)


def test_a_lost_answer_was_carried_out(faulty: FaultyProxy, hub: HubServer) -> None:
    faulty.break_(proxy.LoseAnswer())
    with pytest.raises(ConnectionError):
        get(faulty)
    assert len(hub.requests) == 1
