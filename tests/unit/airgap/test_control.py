# SPDX-License-Identifier: Apache-2.0
"""Control exchanges end: however slowly a server talks, and however much it has to say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sovereign_airgap.auth import Credentials
from sovereign_airgap.errors import SizeMismatch, Stalled
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.registry import Registry
from sovereign_airgap.wire import Wire, tls_context
from tests.unit.airgap.origin import Flood, Request, an_origin, drip

PATIENCE = Patience(attempts=1, stall=0.5, connect=5.0)


@contextmanager
def a_registry(
    url: str, credentials: Credentials | None = None, patience: Patience = PATIENCE
) -> Iterator[Registry]:
    with Pace(patience) as pace:
        wire = Wire(pace, tls_context(None))
        with Registry(url, "models/a", wire, pace, credentials, push=False) as registry:
            yield registry
        wire.close()


def dripping(beginning: bytes, drop: bytes) -> Callable[[Request], None]:
    return lambda request: drip(request, beginning, drop)


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        dripping(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ],
    ids=["a header", "headers", "promises", "a body"],
)
def test_an_answer_that_drips_is_a_stall(answer: Callable[[Request], None]) -> None:
    with an_origin(answer) as origin, a_registry(origin.url) as registry, pytest.raises(Stalled):
        registry.find_manifest("tag")


def test_a_kept_connection_has_a_new_deadline_for_every_exchange() -> None:
    def answer(request: Request) -> None:
        time.sleep(0.6)
        request.reply(404)

    patience = Patience(attempts=1, stall=2.0)
    with an_origin(answer) as origin, a_registry(origin.url, patience=patience) as registry:
        for _ in range(4):
            assert registry.find_manifest("tag") is None


def token_server(token: Callable[[Request], None]) -> Callable[[Request], None]:
    """A registry that names itself as the place where tokens are given."""

    def answer(request: Request) -> None:
        if request.path.startswith("/token"):
            token(request)
        elif request.headers.get("Authorization") == "Bearer t":
            request.reply(404)
        else:
            realm = f"http://{request.headers['Host']}/token?account=a"
            request.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')

    return answer


def test_a_token_that_does_not_end_is_not_read_to_its_end() -> None:
    flood = Flood()
    patience = Patience(attempts=1, stall=20.0)
    with (
        an_origin(token_server(flood)) as origin,
        a_registry(origin.url, patience=patience) as registry,
        pytest.raises(SizeMismatch, match="at most 262144 bytes"),
    ):
        registry.find_manifest("tag")
    assert flood.sent < 64, "what the buffers of both sides hold, not all of it"


@pytest.mark.parametrize("identity_token", ["", "refresh"])
def test_a_token_is_asked_for_as_it_is(identity_token: str) -> None:
    asked: list[tuple[str, str, bytes, str | None]] = []

    def give(request: Request) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        encoding = request.headers.get("Accept-Encoding")
        asked.append((request.command, request.path, body, encoding))
        request.reply(200, b'{"token":"t","expires_in":1%s}' % (b"0" * 400))

    with (
        an_origin(token_server(give)) as origin,
        a_registry(origin.url, Credentials("u", "p", identity_token)) as registry,
    ):
        assert registry.find_manifest("tag") is None
    scope = "service=s&scope=repository%3Amodels%2Fa%3Apull"
    if identity_token:
        form = f"{scope}&grant_type=refresh_token&refresh_token=refresh&client_id=sovereign-airgap"
        assert asked == [("POST", "/token?account=a", form.encode(), "identity")]
    else:
        assert asked == [("GET", f"/token?account=a&{scope}", b"", "identity")]
