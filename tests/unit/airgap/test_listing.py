# SPDX-License-Identifier: Apache-2.0
"""Listing a commit through huggingface_hub: nothing from the environment, the token at home only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from sovereign_airgap.digest import git_blob_id, lfs_pointer
from sovereign_airgap.errors import (
    DigestMismatch,
    SizeMismatch,
    SourceChanged,
    SourceUnavailable,
    SovereignError,
)
from sovereign_airgap.listing import Listing, list_commit
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import HubReference
from sovereign_airgap.wire import Wire, tls_context
from tests.unit.airgap.conftest import QUICK

COMMIT = "c" * 40
SHA = "d" * 64
SOURCE = HubReference("old/name", COMMIT)


class Answers(BaseHTTPRequestHandler):
    """A hub of canned answers: path -> (status, headers, JSON)."""

    canned: ClassVar[dict[str, tuple[int, dict[str, str], object]]] = {}
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append((path, self.headers.get("Authorization")))
        status, headers, document = self.canned.get(path, (404, {}, {}))
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    Answers.seen.clear()
    Answers.canned = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def a_file(path: str = "a.json", size: int = 5, **changes: object) -> dict[str, object]:
    return {"type": "file", "path": path, "size": size, "oid": "e" * 40, **changes}


def an_lfs_file(oid: str | None = None, size: int = 5, listed: int = 5) -> dict[str, object]:
    lfs = {"oid": SHA, "size": listed, "pointerSize": 130}
    return a_file("m.safetensors", size, oid=oid or git_blob_id(lfs_pointer(SHA, size)), lfs=lfs)


def listed(endpoint: str, *files: dict[str, object], sha: str = COMMIT, token: str | None = None) -> Listing:
    Answers.canned |= {
        f"/api/models/old/name/revision/{COMMIT}": (200, {}, {"id": "New/Name", "sha": sha, "siblings": []}),
        f"/api/models/New/Name/tree/{COMMIT}": (200, {}, list(files)),
    }
    with Pace(QUICK) as pace:
        return list_commit(endpoint, SOURCE, token, Wire(pace, tls_context(None)))


def test_a_renamed_repository_gets_its_canonical_id(endpoint: str) -> None:
    found = listed(endpoint, an_lfs_file(), a_file(), {"type": "directory", "path": "d", "oid": "e" * 40})
    assert found.source == HubReference("New/Name", COMMIT)
    assert [file.path for file in found.files] == ["a.json", "m.safetensors"]
    assert str(found.files[1].sha256) == f"sha256:{SHA}"


def test_nothing_from_the_environment_is_sent(endpoint: str) -> None:
    listed(endpoint, a_file())
    assert {token for _, token in Answers.seen} == {None}
    listed(endpoint, a_file(), token="given")
    assert Answers.seen[-1][1] == "Bearer given"


def test_the_next_page_on_another_origin_gets_no_token(endpoint: str) -> None:
    other = endpoint.replace("127.0.0.1", "localhost")
    tree = f"/api/models/New/Name/tree/{COMMIT}"
    listed(endpoint, a_file())
    Answers.canned[tree] = (200, {"Link": f'<{other}/next>; rel="next"'}, [a_file()])
    Answers.canned["/next"] = (200, {}, [a_file("b.json")])
    Answers.seen.clear()
    with Pace(QUICK) as pace:
        found = list_commit(endpoint, SOURCE, "secret", Wire(pace, tls_context(None)))
    assert len(found.files) == 2
    assert dict(Answers.seen)[tree] == "Bearer secret"
    assert dict(Answers.seen)["/next"] is None


@pytest.mark.parametrize(
    ("files", "sha", "error"),
    [
        ([], "f" * 40, SourceChanged),
        ([an_lfs_file(oid="e" * 40)], COMMIT, DigestMismatch),
        ([an_lfs_file(listed=6)], COMMIT, SizeMismatch),
        ([a_file(size=-1)], COMMIT, SourceUnavailable),
        ([a_file(oid="main")], COMMIT, SourceUnavailable),
        ([{"type": "file"}], COMMIT, SourceUnavailable),
        (["text"], COMMIT, SourceUnavailable),
    ],
)
def test_a_listing_that_contradicts_itself_is_refused(
    endpoint: str, files: list[dict[str, object]], sha: str, error: type[SovereignError]
) -> None:
    with pytest.raises(error):
        listed(endpoint, *files, sha=sha)
