# SPDX-License-Identifier: Apache-2.0
"""Ranges, redirects, signatures and TLS of the hub double, seen by a bare HTTP client."""

import http.client
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dev.hub import HubServer
from dev.hub.transfer import Unsatisfiable, Window, window_of
from tests.unit.hub.conftest import FILES

WEIGHTS = FILES["model.safetensors"]


@contextmanager
def answer(
    url: str, method: str = "GET", context: ssl.SSLContext | None = None, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    address = urlsplit(url)
    connection = (
        http.client.HTTPSConnection(address.netloc, context=context, timeout=10)
        if address.scheme == "https"
        else http.client.HTTPConnection(address.netloc, timeout=10)
    )
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, url.removeprefix(f"{address.scheme}://{address.netloc}"), headers=named)
        yield connection.getresponse()
    finally:
        connection.close()


def stored_at(hub: HubServer, name: str = "model.safetensors") -> str:
    """The signed address that the hub redirects to."""
    with answer(f"{hub.endpoint}/acme/tiny/resolve/{hub.commit('acme/tiny')}/{name}", "HEAD") as response:
        assert response.status == 302
        assert response.headers["X-Repo-Commit"] == hub.commit("acme/tiny")
        assert response.headers["X-Linked-Size"] == str(len(WEIGHTS))
        return response.headers["Location"]


def test_large_files_live_at_another_origin(hub: HubServer) -> None:
    address = stored_at(hub)

    assert urlsplit(address).netloc != urlsplit(hub.endpoint).netloc
    with answer(address, Accept_Encoding="identity") as response:
        assert (response.status, response.read()) == (200, WEIGHTS)


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, WEIGHTS[:10]),
        ("bytes=10000-", 206, WEIGHTS[10000:]),
        ("bytes=-5", 206, WEIGHTS[-5:]),
        ("bytes=0-99999999", 206, WEIGHTS),
        (f"bytes={len(WEIGHTS)}-", 416, b""),
        ("lines=1-2", 200, WEIGHTS),
        ("bytes=9-3", 200, WEIGHTS),
    ],
)
def test_ranges(hub: HubServer, asked: str, status: int, expected: bytes) -> None:
    with answer(stored_at(hub), Range=asked, Accept_Encoding="identity") as response:
        assert (response.status, response.read()) == (status, expected)
        if status == 206:
            assert response.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")
        if status == 416:
            assert response.headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"


@pytest.mark.parametrize(
    ("header", "window"),
    [
        (None, None),
        ("bytes=0-0", Window(0, 1)),
        ("bytes=9-", Window(9, 1)),
        ("bytes=-99", Window(0, 10)),
        ("bytes=0-1,3-4", None),
        ("bytes=-", None),
    ],
)
def test_the_window_of_ten_bytes(header: str | None, window: Window | None) -> None:
    assert window_of(header, 10) == window


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_window_outside_the_file_is_unsatisfiable(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        window_of(header, size)


def test_whoever_offers_gzip_loses_range(hub: HubServer) -> None:
    with answer(stored_at(hub), Range="bytes=0-9", Accept_Encoding="gzip") as response:
        assert (response.status, response.read()) == (200, WEIGHTS)


def test_small_files_are_one_relative_redirect_away(hub: HubServer) -> None:
    commit = hub.commit("acme/tiny")
    with answer(f"{hub.endpoint}/acme/tiny/resolve/{commit}/config.json") as response:
        assert response.status == 307
        location = response.headers["Location"]
    assert location.startswith("/")
    with answer(hub.endpoint + location, Accept_Encoding="identity") as response:
        assert response.headers["X-Repo-Commit"] == commit
        assert response.read() == FILES["config.json"]


def test_an_address_expires(hub: HubServer) -> None:
    hub.signer.lifetime = -1
    with answer(stored_at(hub)) as response:
        assert response.status == 403
        assert b"expired" in response.read()


def test_an_address_cannot_be_made_up_or_outlive_its_key(hub: HubServer) -> None:
    address = stored_at(hub)
    with answer(address.replace("expires=", "expires=9")) as response:
        assert response.status == 403
    hub.signer.revoke()
    with answer(address) as response:
        assert response.status == 403


def test_a_token_sent_to_the_storage_is_refused_and_recorded(hub: HubServer) -> None:
    with answer(stored_at(hub), Authorization="Bearer hf_x") as response:
        assert response.status == 400

    [violation] = hub.violations
    assert "Authorization" in violation
    assert "hf_x" not in violation


def test_an_address_outside_the_folder_is_not_found(hub: HubServer) -> None:
    with answer(f"{hub.endpoint}/acme/tiny/resolve/main/../../../../etc/passwd") as response:
        assert response.status == 404
    with answer(f"{hub.endpoint}/acme/tiny/resolve/main/..%2F..%2Fhub") as response:
        assert response.status == 404


def test_a_stopped_hub_ends_its_open_connections(root: Path) -> None:
    with HubServer(root) as hub:
        connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)
        connection.request("GET", "/api/models/acme/tiny")
        connection.getresponse().read()
        kept = connection.sock
        assert kept is not None
    assert kept.recv(1) == b""
    connection.close()


SELF_SIGNED = [
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
    *("-days", "2", "-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    made = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [*SELF_SIGNED, "-out", str(made[0]), "-keyout", str(made[1])],
        check=True,
        capture_output=True,
    )
    return made


def test_over_tls_both_origins_are_https(root: Path, certificate: tuple[Path, Path]) -> None:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    with HubServer(root, tls=certificate) as hub:
        with answer(f"{hub.endpoint}/api/models/acme/tiny", context=trust) as response:
            assert json.loads(response.read())["id"] == "acme/tiny"
        with pytest.raises(ssl.SSLCertVerificationError), answer(hub.endpoint, context=None):
            pass
        with answer(f"{hub.endpoint}/acme/tiny/resolve/main/model.safetensors", context=trust) as response:
            location = response.headers["Location"]
        with answer(location, context=trust, Accept_Encoding="identity") as response:
            assert response.read() == WEIGHTS


def test_the_command_prints_its_endpoint_and_ends_on_sigterm(root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "dev.hub", str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        with answer(f"{endpoint}/api/models/acme/tiny") as response:
            assert response.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_command_says_what_is_wrong_with_its_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev.hub", str(tmp_path / "no")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is not a folder" in done.stdout
