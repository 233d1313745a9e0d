# SPDX-License-Identifier: Apache-2.0
"""The hub double itself: routes of the Hub's API to answers; files from here or, if large, from storage."""

import base64
import itertools
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from dev.hub import answers, storage
from dev.hub.answers import Answer
from dev.hub.listener import Listener
from dev.hub.repository import HubFile, HubFolder, Repository, Revision
from dev.hub.transfer import send_file

MAX_BODY = 1024 * 1024


@dataclass(frozen=True)
class Seen:
    """One request, as tests want to count it."""

    origin: str
    """`hub` or `storage`."""
    method: str
    path: str
    range: str | None
    authorized: bool


@dataclass(frozen=True)
class FileAnswer:
    """A file to be sent from this origin."""

    file: HubFile
    headers: dict[str, str]


@dataclass(frozen=True)
class Request:
    method: str
    segments: tuple[str, ...]
    query: dict[str, list[str]]
    origin: str
    """Scheme, host and port as the client knows us."""
    token: str | None
    body: bytes

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


class HubServer:
    """Serves `root` from `__enter__` to `__exit__` on two origins: the hub's and the storage's."""

    def __init__(
        self,
        root: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        storage_port: int = 0,
        storage_url: str | None = None,
        tls: tuple[Path, Path] | None = None,
        tokens: frozenset[str] = frozenset(),
        page_size: int = 1000,
        lfs_from: int | None = None,
    ) -> None:
        """`storage_url` replaces the storage's address in redirects: for a proxy, or a Service, before it.

        `tokens` are signed in without being named by any repository; `port` 0 is a free one.
        """
        self.folder = HubFolder(Path(root)) if lfs_from is None else HubFolder(Path(root), lfs_from=lfs_from)
        self.signer = storage.Signer()
        self.violations: list[str] = []
        self.requests: deque[Seen] = deque(maxlen=100_000)
        self.storage_url = storage_url
        self._tokens = tokens
        self._page_size = page_size
        self._asked = itertools.count(1)
        self._hub = Listener(self._respond, host, port, tls)
        self._storage = Listener(self._respond_from_storage, host, storage_port, tls)

    @property
    def endpoint(self) -> str:
        return self._hub.url

    @property
    def storage_endpoint(self) -> str:
        return self._storage.url

    def commit(self, repo_id: str, revision: str = "main") -> str:
        """The 40 hex digits of a revision that is served."""
        repository = self.folder.repository(repo_id)
        found = repository.revision(revision) if repository else None
        if found is None:
            raise LookupError(f"{repo_id} has no revision {revision}")
        return found.commit

    def __enter__(self) -> Self:
        for repo_id in self.folder.ids():
            self.folder.repository(repo_id)  # hash now: the first request must not wait for gigabytes
        self._hub.start()
        self._storage.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.stop()
        self._storage.stop()

    def answer(self, request: Request) -> Answer | FileAnswer:
        """The whole of the hub's behaviour, without a socket."""
        if request.token is not None and request.token not in self._tokens | self.folder.tokens():
            return answers.invalid_token()
        match request.segments:
            case ("api", "models", org, name):
                return self._model_info(request, f"{org}/{name}", None)
            case ("api", "models", org, name, "revision", revision):
                return self._model_info(request, f"{org}/{name}", revision)
            case ("api", "models", org, name, "tree", revision, *rest):
                return self._tree(request, f"{org}/{name}", revision, "/".join(rest).strip("/"))
            case ("api", "models", org, name, "paths-info", revision) if request.method == "POST":
                return self._paths_info(request, f"{org}/{name}", revision)
            case ("api", "models", org, name, "refs"):
                repository = self._find(request, f"{org}/{name}")
                return (
                    repository
                    if isinstance(repository, Answer)
                    else answers.json_answer(answers.refs(repository))
                )
            case ("api", "resolve-cache", "models", org, name, revision, *rest):
                return self._resolve(request, f"{org}/{name}", revision, "/".join(rest), cached=True)
            case (org, name, "resolve", revision, *rest):
                return self._resolve(request, f"{org}/{name}", revision, "/".join(rest), cached=False)
            case _:
                return answers.refusal(404, None, "Not Found")

    def _find(self, request: Request, repo_id: str) -> Repository | Answer:
        canonical = self.folder.canonical_id(repo_id)
        repository = self.folder.repository(canonical) if canonical else None
        signed_in = request.token is not None
        if repository is None or canonical is None:
            return answers.repository_not_found(signed_in=signed_in)
        if repository.private_for is not None and request.token not in repository.private_for:
            return answers.repository_not_found(signed_in=signed_in)
        if canonical != repo_id:
            old, new = repo_id.split("/"), canonical.split("/")
            at = next(i for i in range(3) if list(request.segments[i : i + 2]) == old)
            renamed = [*request.segments[:at], *new, *request.segments[at + 2 :]]
            target = "/" + "/".join(quote(segment, safe="") for segment in renamed)
            query = f"?{urlencode(request.query, doseq=True)}" if request.query else ""
            return Answer(307, {"Location": target + query})
        return repository

    def _find_revision(
        self, request: Request, repo_id: str, name: str
    ) -> tuple[Repository, Revision] | Answer:
        repository = self._find(request, repo_id)
        if isinstance(repository, Answer):
            return repository
        revision = repository.revision(name)
        return (repository, revision) if revision is not None else answers.revision_not_found(name)

    def _model_info(self, request: Request, repo_id: str, name: str | None) -> Answer:
        found = self._find_revision(request, repo_id, name or "main")
        if isinstance(found, Answer):
            return found
        info = answers.model_info(*found, blobs=request.flag("blobs"), asked=next(self._asked))
        return answers.json_answer(info)

    def _tree(self, request: Request, repo_id: str, name: str, folder: str) -> Answer:
        found = self._find_revision(request, repo_id, name)
        if isinstance(found, Answer):
            return found
        _, revision = found
        expand = request.flag("expand")
        entries = answers.tree(revision, folder, recursive=request.flag("recursive"), expand=expand)
        if entries is None:
            return answers.entry_not_found(revision)
        start = _cursor_position(request.query.get("cursor", [""])[0])
        end = start + (min(self._page_size, 50) if expand else self._page_size)
        headers: dict[str, str] = {}
        if end < len(entries):
            path = "/" + "/".join(quote(segment, safe="") for segment in request.segments)
            query = urlencode({**request.query, "cursor": [_cursor(end)]}, doseq=True)
            headers["Link"] = f'<{request.origin}{path}?{query}>; rel="next"'
        return answers.json_answer(entries[start:end], **headers)

    def _paths_info(self, request: Request, repo_id: str, name: str) -> Answer:
        found = self._find_revision(request, repo_id, name)
        if isinstance(found, Answer):
            return found
        asked = parse_qs(request.body.decode())  # the real client sends a form
        expand = asked.get("expand", [""])[0].lower() in ("true", "1")
        return answers.json_answer(answers.paths_info(found[1], asked.get("paths", []), expand=expand))

    def _resolve(
        self, request: Request, repo_id: str, name: str, path: str, *, cached: bool
    ) -> Answer | FileAnswer:
        found = self._find_revision(request, repo_id, name)
        if isinstance(found, Answer):
            return found
        repository, revision = found
        if repository.gated_for is not None and request.token not in repository.gated_for:
            return answers.gated(repository, signed_in=request.token is not None)
        file = revision.files.get(path)
        if file is None:
            return answers.entry_not_found(revision)
        commit = {"X-Repo-Commit": revision.commit}
        if file.sha256 is not None:
            storage_url = self.storage_url or _other_port(request.origin, self._storage.port)
            linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
            return Answer(302, {**commit, **linked, "Location": storage_url + self.signer.sign(file)})
        if not cached:
            # The Hub sends small files on to a cache on its own origin, by a relative address.
            target = f"/api/resolve-cache/models/{repository.id}/{revision.commit}/{quote(path)}"
            return Answer(307, {**commit, "X-Linked-Size": str(file.size), "Location": target})
        return FileAnswer(file, {**commit, "ETag": f'"{file.blob_id}"'})

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        self._record("hub", handler)
        length = int(handler.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            handler.send_error(413)
            return
        address = urlsplit(handler.path)
        authorization = handler.headers.get("Authorization", "")
        answer = self.answer(
            Request(
                method=handler.command,
                segments=tuple(unquote(segment) for segment in address.path.lstrip("/").split("/")),
                query=parse_qs(address.query),
                origin=self._origin_as_seen_by(handler),
                token=authorization.removeprefix("Bearer ").strip() or None,
                body=handler.rfile.read(length) if length else b"",
            )
        )
        if isinstance(answer, FileAnswer):
            send_file(handler, answer.file.source, answer.file.size, answer.headers)
            return
        handler.send_response(answer.status)
        for key, value in answer.headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body)

    def _origin_as_seen_by(self, handler: BaseHTTPRequestHandler) -> str:
        host = handler.headers.get("Host")
        return f"{self._hub.scheme}://{host}" if host else self._hub.url

    def _respond_from_storage(self, handler: BaseHTTPRequestHandler) -> None:
        self._record("storage", handler)
        storage.respond(handler, self.signer, self.folder.object, self.violations)

    def _record(self, origin: str, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        seen = Seen(origin, handler.command, handler.path, headers.get("Range"), "Authorization" in headers)
        self.requests.append(seen)


def _other_port(origin: str, port: int) -> str:
    """The same host on another port: whoever reaches the hub reaches the storage beside it."""
    address = urlsplit(origin)
    host = f"[{address.hostname}]" if ":" in (address.hostname or "") else address.hostname
    return f"{address.scheme}://{host}:{port}"


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(str(position).encode()).decode()


def _cursor_position(cursor: str) -> int:
    return int(base64.urlsafe_b64decode(cursor)) if cursor else 0
