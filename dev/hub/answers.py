# SPDX-License-Identifier: Apache-2.0
"""What the hub double says: pure functions from repositories to the JSON and headers of the Hub's API."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from dev.hub.repository import HubFile, Repository, Revision

Json = dict[str, object]

EPOCH = "1970-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def json_answer(payload: object, **headers: str) -> Answer:
    body = json.dumps(payload, ensure_ascii=False).encode()
    return Answer(200, {"Content-Type": "application/json; charset=utf-8", **headers}, body)


def refusal(status: int, code: str | None, message: str, **headers: str) -> Answer:
    """An error as the Hub words it; the client reads the code and the message from the headers."""
    named = {"X-Error-Code": code} if code else {}
    body = json.dumps({"error": message}).encode()
    return Answer(
        status, {"Content-Type": "application/json", "X-Error-Message": message, **named, **headers}, body
    )


def repository_not_found(*, signed_in: bool) -> Answer:
    """To strangers the Hub does not tell a missing repository from a private one."""
    if signed_in:
        return refusal(404, "RepoNotFound", "Repository not found")
    return refusal(
        401,
        "RepoNotFound",
        "Invalid username or password.",
        **{"WWW-Authenticate": 'Bearer realm="Authentication required"'},
    )


def invalid_token() -> Answer:
    return refusal(401, None, "Invalid credentials in Authorization header")


def revision_not_found(name: str) -> Answer:
    return refusal(404, "RevisionNotFound", f"Invalid rev id: {name}")


def entry_not_found(revision: Revision) -> Answer:
    return refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": revision.commit})


def gated(repository: Repository, *, signed_in: bool) -> Answer:
    if signed_in:
        message = (
            f"Access to model {repository.id} is restricted and you are not in the authorized list. "
            f"Visit https://huggingface.co/{repository.id} to ask for access."
        )
        return refusal(403, "GatedRepo", message)
    message = (
        f"Access to model {repository.id} is restricted. You must have access to it and be authenticated "
        "to access it. Please log in."
    )
    return refusal(401, "GatedRepo", message)


def model_info(repository: Repository, revision: Revision, *, blobs: bool, asked: int) -> Json:
    """`asked` makes the mutable fields move, so that nobody comes to rely on them."""
    return {
        "_id": revision.commit[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.id.partition("/")[0],
        "sha": revision.commit,
        "createdAt": EPOCH,
        "lastModified": EPOCH,
        "private": repository.private_for is not None,
        "gated": "auto" if repository.gated_for is not None else False,
        "disabled": False,
        "downloads": asked,
        "likes": asked,
        "tags": [f"asked:{asked}"],
        "siblings": [_sibling(file, blobs=blobs) for file in _in_order(revision)],
    }


def tree(revision: Revision, folder: str, *, recursive: bool, expand: bool) -> list[Json] | None:
    """The entries under a folder, in the order of their paths; None where there is no such folder."""
    if folder not in revision.trees:
        return None
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, Json] = {
        path: {"type": "directory", "oid": oid, "size": 0, "path": path}
        for path, oid in revision.trees.items()
        if path and path.startswith(prefix)
    }
    entries |= {path: file_entry(file) for path, file in revision.files.items() if path.startswith(prefix)}
    wanted = sorted(path for path in entries if recursive or "/" not in path[len(prefix) :])
    return [entries[path] | (_expanded(revision, entries[path]) if expand else {}) for path in wanted]


def paths_info(revision: Revision, paths: Sequence[str], *, expand: bool) -> list[Json]:
    found: list[Json] = []
    for path in paths:
        entry: Json
        if path in revision.files:
            entry = file_entry(revision.files[path])
        elif path in revision.trees and path:
            entry = {"type": "directory", "oid": revision.trees[path], "size": 0, "path": path}
        else:
            continue
        found.append(entry | (_expanded(revision, entry) if expand else {}))
    return found


def refs(repository: Repository) -> Json:
    main = repository.main
    branches = {revision.label: revision.commit for revision in repository.revisions}
    if main is not None:
        branches["main"] = main.commit
    return {
        "branches": [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in sorted(branches.items())
        ],
        "tags": [],
        "converts": [],
    }


def file_entry(file: HubFile) -> Json:
    entry: Json = {"type": "file", "oid": file.blob_id, "size": file.size, "path": file.path}
    if file.sha256 is not None:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return entry


def _sibling(file: HubFile, *, blobs: bool) -> Json:
    sibling: Json = {"rfilename": file.path}
    if blobs:
        sibling |= {"size": file.size, "blobId": file.blob_id}
        if file.sha256 is not None:
            sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return sibling


def _expanded(revision: Revision, entry: Json) -> Json:
    extra: Json = {"lastCommit": {"id": revision.commit, "title": "Content", "date": EPOCH}}
    if entry["type"] == "file":
        scan = {"status": "unscanned"}
        extra["securityFileStatus"] = {"status": "unscanned", "avScan": scan, "pickleImportScan": scan}
    return extra


def _in_order(revision: Revision) -> list[HubFile]:
    return [revision.files[path] for path in sorted(revision.files)]
