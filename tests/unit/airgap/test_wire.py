# SPDX-License-Identifier: Apache-2.0
"""The byte path and its patience: stalls end, credentials stay at home, nothing waits for ever."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sovereign_airgap.auth import Challenge, docker_config_path, read_docker_config
from sovereign_airgap.errors import CredentialsUnreadable, Interrupted, InvalidReference, UnsafeRedirect
from sovereign_airgap.pace import Mark, Pace, Patience
from sovereign_airgap.wire import LineBroken, Origin, Wire, tls_context

PATIENCE = Patience(attempts=2, stall=0.3, connect=1.0, least_bytes_per_stall=1000)


@contextmanager
def a_server(answer: Callable[[socket.socket], None], connections: int = 4) -> Iterator[str]:
    """Takes raw connections, so that it can misbehave in ways no server library would."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        for _ in range(connections):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                with suppress(OSError):
                    answer(sock)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)
        assert not thread.is_alive()


def request_of(sock: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        piece = sock.recv(65536)
        if not piece:
            break
        got += piece
    return got


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Pace(PATIENCE) as pace:
        wire = Wire(pace, tls_context(None))
        yield wire
        wire.close()


def test_a_body_that_drips_is_a_stall(wire: Wire) -> None:
    def drip(sock: socket.socket) -> None:
        request_of(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            sock.sendall(b"x")
            time.sleep(0.02)

    with a_server(drip) as url:
        download = wire.get(url, {})
        with pytest.raises(LineBroken) as caught:
            download.read(100_000)
    assert caught.value.stalled


def test_headers_that_drip_are_a_stall(wire: Wire) -> None:
    def drip(sock: socket.socket) -> None:
        request_of(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            sock.sendall(b"X-Y: z\r\n")
            time.sleep(0.02)

    with a_server(drip) as url, pytest.raises(LineBroken) as caught:
        wire.get(url, {})
    assert caught.value.stalled


def test_a_reader_that_does_not_read_is_a_stall(wire: Wire) -> None:
    done = threading.Event()

    def deaf(sock: socket.socket) -> None:
        done.wait(10)

    with a_server(deaf) as url:
        upload = wire.send("PATCH", url, {}, 1 << 26)
        with pytest.raises(LineBroken) as caught:
            upload.write(memoryview(bytearray(1 << 26)))
        done.set()
    assert caught.value.stalled


def test_stopping_ends_a_wait_at_once(wire: Wire) -> None:
    inside = threading.Event()

    def silent(sock: socket.socket) -> None:
        request_of(sock)
        inside.set()
        sock.recv(1)

    def stop() -> None:
        inside.wait(10)
        wire.pace.stop()

    with a_server(silent) as url:
        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(Interrupted):
            wire.get(url, {})
        thread.join()
    with pytest.raises(Interrupted):
        wire.pace.sleep(60)


def test_time_spent_on_the_other_side_is_no_stall() -> None:
    left, right = socket.socketpair()
    with left, right:
        mark = Mark(left, 1.0, 10)
        assert not mark.judge(time.monotonic() + 100), "nobody waits for this socket"
        with mark:
            assert mark.judge(time.monotonic() + 100)
            mark.moved(10)
            assert not mark.judge(time.monotonic() + 100), "enough has moved"


def test_a_body_that_ends_early_is_broken_and_a_whole_one_keeps_its_connection(wire: Wire) -> None:
    asked: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        for body in (b"12345", b"123"):
            asked.append(request_of(sock))
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    with a_server(serve) as url:
        first = wire.get(url, {})
        assert first.read(6) == b"12345"
        first.close()
        with pytest.raises(LineBroken):
            wire.get(url, {}).read(6)
    assert len(asked) == 2 and b"Accept-Encoding: identity" in asked[0]


def test_credentials_go_to_the_first_origin_only(wire: Wire) -> None:
    asked: list[bytes] = []

    def storage(sock: socket.socket) -> None:
        asked.append(request_of(sock))
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with a_server(storage) as second:

        def hub(sock: socket.socket) -> None:
            asked.append(request_of(sock))
            sock.sendall(f"HTTP/1.1 302 Found\r\nLocation: {second}/x\r\nContent-Length: 0\r\n\r\n".encode())

        with a_server(hub) as first:
            hops = wire.follow(first, {}, "Bearer secret")
            hops.download.close()
    assert b"Bearer secret" in asked[0] and b"secret" not in asked[1]
    assert str(hops.origin) == second


def test_a_circle_of_redirects_ends(wire: Wire) -> None:
    def again(sock: socket.socket) -> None:
        request_of(sock)
        sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with a_server(again, 8) as url, pytest.raises(LineBroken, match="more than"):
        wire.follow(url, {}, None)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "", "ftp://127.0.0.1/x", "http://[", "http://h:x/", "http://:80/"]
)
def test_a_redirect_to_no_web_address_is_refused(wire: Wire, location: str) -> None:
    def lure(sock: socket.socket) -> None:
        request_of(sock)
        head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())

    with a_server(lure) as url, pytest.raises(UnsafeRedirect):
        wire.follow(url, {}, None)


def test_a_redirect_to_a_host_that_cannot_be_one_is_broken(wire: Wire) -> None:
    def lure(sock: socket.socket) -> None:
        request_of(sock)
        head = f"HTTP/1.1 302 Found\r\nLocation: http://{'a' * 70}/\r\nContent-Length: 0\r\n\r\n"
        sock.sendall(head.encode())

    with a_server(lure) as url, pytest.raises(LineBroken):
        wire.follow(url, {}, None)


def test_origins_compare_by_scheme_host_and_port() -> None:
    assert Origin.of("https://Host/x") == Origin.of("https://host:443") != Origin.of("http://host")
    for url in ("host:1", "ftp://h", "https://", "http://h:x"):
        with pytest.raises(InvalidReference):
            Origin.of(url)


def test_pauses_grow_have_jitter_and_end() -> None:
    patience = Patience(first_pause=1, longest_pause=8, longest_retry_after=20)
    for failures, most in ((1, 1), (2, 2), (4, 8), (50, 8)):
        assert most / 2 <= patience.pause(failures) <= most
    assert patience.pause(1, 15) == 15
    assert patience.pause(1, 10_000) == 20
    assert patience.commit(50_000_000_000) == 1000


def test_challenges_are_read() -> None:
    challenge = Challenge.parse('Bearer realm="https://a/t?x=1",service="a \\"b\\"", scope=pull')
    assert challenge.scheme == "bearer"
    assert challenge.parameters == {"realm": "https://a/t?x=1", "service": 'a "b"', "scope": "pull"}


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_the_docker_config_gives_the_login_of_one_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "auths": {
                    "h:5000": {"auth": packed("me:pass:word")},
                    "https://other": {"username": "a", "password": "b"},
                }
            }
        )
    )
    login = read_docker_config(path, "h:5000")
    assert login is not None and (login.user, login.password) == ("me", "pass:word")
    assert "pass" not in repr(login)
    assert read_docker_config(path, "other") is not None
    assert read_docker_config(path, "third") is None
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert docker_config_path(None) == path
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    assert docker_config_path(None) is None


@pytest.mark.parametrize(
    "document",
    ["", "[]", {"auths": {"h": {"auth": "%%%"}}}, {"auths": {"h": {"auth": packed("nocolon")}}},
     {"credHelpers": {"h": "ecr-login"}}, {"auths": {"h": {}}, "credsStore": "desktop"}],
)  # fmt: skip
def test_a_login_that_cannot_be_read_is_named(tmp_path: Path, document: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(CredentialsUnreadable) as caught:
        read_docker_config(path, "h")
    assert str(caught.value).endswith(".")


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(CredentialsUnreadable):
        tls_context(tmp_path / "ca.pem")
