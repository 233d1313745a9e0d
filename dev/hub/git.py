# SPDX-License-Identifier: Apache-2.0
"""Git's object ids, as the hub double needs them: the Hub names small files and commits by these."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TreeEntry:
    name: bytes
    object_id: str
    is_tree: bool


def object_id(kind: str, body: bytes) -> str:
    """SHA-1 of git's framing of `body`."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(body)) + body).hexdigest()


def blob_id(body: bytes) -> str:
    return object_id("blob", body)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The canonical pointer text that git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def tree_id(entries: Iterable[TreeEntry]) -> str:
    # Git sorts a folder as if its name ended in a slash.
    ordered = sorted(entries, key=lambda entry: entry.name + (b"/" if entry.is_tree else b""))
    body = b"".join(
        (b"40000 " if entry.is_tree else b"100644 ") + entry.name + b"\0" + bytes.fromhex(entry.object_id)
        for entry in ordered
    )
    return object_id("tree", body)


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """Folder path -> tree id, for every folder above the given `path -> blob id`; the root is ""."""
    children: dict[str, dict[str, TreeEntry]] = {"": {}}
    for path, blob in blobs.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, {})[name] = TreeEntry(name.encode(), blob, is_tree=False)
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, {})
    ids: dict[str, str] = {}
    # Deepest first (the root, which has no name, last): a folder's id is part of its parent's content.
    for folder in sorted(children, key=lambda path: (path.count("/") + 1 if path else 0, path), reverse=True):
        ids[folder] = tree_id(children[folder].values())
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = TreeEntry(name.encode(), ids[folder], is_tree=True)
    return ids


def commit_id(root_tree: str) -> str:
    """The id of a commit that depends on nothing but its content: the same files are the same commit."""
    who = "Hub double <hub@localhost> 0 +0000"
    return object_id("commit", f"tree {root_tree}\nauthor {who}\ncommitter {who}\n\nContent\n".encode())
