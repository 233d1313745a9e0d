# SPDX-License-Identifier: Apache-2.0
"""A hub may be slow, endless or hostile: its listing comes to an end."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from itertools import count

import pytest

from sovereign_airgap.errors import FileTooLarge, SourceUnavailable, SovereignError, Stalled, TooManyFiles
from sovereign_airgap.listing import Listing, list_commit
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import Wire, tls_context
from tests.unit.airgap.origin import Flood, Request, an_origin, drip

COMMIT = "c" * 40
SOURCE = HubReference("org/name", COMMIT)
PATIENCE = Patience(attempts=2, first_pause=0.01, longest_pause=0.05, longest_retry_after=0.1, stall=30.0)
HASTE = Patience(attempts=1, stall=0.2)

Page = Callable[[Request], None]


def listed(page: Page, patience: Patience = PATIENCE) -> Listing:
    """Lists from a hub that answers as one does, but for the pages of the tree."""

    def answer(request: Request) -> None:
        if "/tree/" in request.path:
            page(request)
        else:
            request.reply(200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())

    with an_origin(answer) as hub, Pace(patience) as pace:
        wire = Wire(pace, tls_context(None))
        try:
            return list_commit(hub.url, SOURCE, None, wire)
        finally:
            wire.close()


def a_folder(name: object) -> dict[str, object]:
    return {"type": "directory", "path": f"d{name}", "oid": "e" * 40, "size": 0}


def a_page(*entries: dict[str, object], more: bool = False) -> Page:
    body = json.dumps(entries).encode()
    numbers = count()

    def page(request: Request) -> None:
        following = (
            f"http://{request.headers['Host']}/api/models/org/name/tree/{COMMIT}?cursor={next(numbers)}"
        )
        headers = {"Link": f'<{following}>; rel="next"'} if more else {}
        request.reply(200, body, **headers)

    return page


def compressed(request: Request) -> None:
    request.reply(200, gzip.compress(b"[" + b" " * 10_000_000 + b"]"), Content_Encoding="gzip")


def nested(request: Request) -> None:
    request.reply(200, b"[" * 100_000)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (a_page(a_folder(0), more=True), TooManyFiles),
        (a_page(more=True), TooManyFiles),
        (a_page(*map(a_folder, range(16_001))), TooManyFiles),
        (compressed, SourceUnavailable),
        (nested, SourceUnavailable),
    ],
    ids=["pages of folders", "empty pages", "folders", "a compressed page", "a deep page"],
)
def test_what_no_repository_would_list_is_refused(page: Page, error: type[SovereignError]) -> None:
    with pytest.raises(error) as caught:
        listed(page)
    assert str(caught.value).endswith(".")


def test_a_repository_may_have_more_folders_than_files() -> None:
    assert listed(a_page(*map(a_folder, range(16_000)))).files == ()


def test_a_page_without_an_end_is_not_read_to_its_end() -> None:
    flood = Flood()
    with pytest.raises(FileTooLarge, match="at most 16777216 bytes"):
        listed(flood)
    assert flood.sent < 64


def silence(request: Request) -> None:
    request.close_connection = True
    time.sleep(5)


def dripping(request: Request) -> None:
    drip(request, b"HTTP/1.1 200 OK\r\n\r\n", b" ")


@pytest.mark.parametrize("page", [silence, dripping])
def test_a_page_that_does_not_come_is_a_stall(page: Page) -> None:
    with pytest.raises(Stalled):
        listed(page, HASTE)


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "100000"}, {"RateLimit": '"api";r=0;t=100000'}], ids=lambda it: next(iter(it))
)
def test_the_hub_does_not_say_for_how_long_we_wait(headers: dict[str, str]) -> None:
    answers = iter([True])

    def page(request: Request) -> None:
        if next(answers, False):
            request.reply(429, b"", **headers)
        else:
            request.reply(200, b"[]")

    begun = time.monotonic()
    assert listed(page).files == ()
    assert time.monotonic() - begun >= 0.1, "but it is not overheard"
