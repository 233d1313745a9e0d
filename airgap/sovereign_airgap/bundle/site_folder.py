# SPDX-License-Identifier: Apache-2.0
"""A folder of generated files that appears whole, and never takes the place of what somebody has edited."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from sovereign_airgap import strict_json
from sovereign_airgap.digest import Digest
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import DiskFailed
from sovereign_airgap.names import RESERVED_PREFIX, require_safe_set

# What this folder was when it was written: the digest of every file in it.
LIST = "files.json"
_MAX_FILES = 5_000
_FILE_BYTES = 8 * 1024 * 1024


def require_ours(folder: Path) -> None:
    """Raises DiskFailed unless `folder` is absent, empty, or just as `write` left it."""
    if not os.path.lexists(folder):
        return
    with explained(folder):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise _not_ours(folder, "something else than a folder")
        found = _files(folder)
    if not found:
        return
    listed = _listed(folder, found)
    if listed is None:
        raise _not_ours(folder, f"{ascii(min(found))[1:-1][:200]}, which is not from here")
    for path in sorted(found.keys() | listed.keys()):
        if path != LIST and found.get(path) != listed.get(path):
            raise _not_ours(folder, f"{ascii(path)[1:-1][:200]} added, changed or removed")


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes all files and then gives the folder its name; a former one of ours is replaced.

    Between taking the former one away and naming the new one there is an instant without either; a run killed
    then leaves both beside it under hidden names.
    """
    require_safe_set(files)
    require_ours(folder)
    listing = {path: str(Digest.of(content)) for path, content in files.items()}
    content = (json.dumps({"files": listing}, indent=2, sort_keys=True) + "\n").encode()
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        mark = os.urandom(8).hex()
        new, old = (folder.with_name(f"{RESERVED_PREFIX}{mark}.{what}") for what in ("new", "old"))
        try:
            for path, body in {**files, LIST: content}.items():
                _write(new / path, body)
            if os.path.lexists(folder):
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                with contextlib.suppress(OSError):
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> dict[str, str]:
    """Every file below with its digest; links and the like have one that nothing equals."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        for name in names + [each for each in folders if (Path(place) / each).is_symlink()]:
            path = Path(place) / name
            status = path.lstat()
            plain = stat.S_ISREG(status.st_mode) and status.st_size <= _FILE_BYTES
            found[path.relative_to(folder).as_posix()] = str(Digest.of(path.read_bytes())) if plain else "?"
            if len(found) > _MAX_FILES:
                raise _not_ours(folder, f"more than {_MAX_FILES} files")
    return found


def _listed(folder: Path, found: Mapping[str, str]) -> dict[str, str] | None:
    if found.get(LIST, "?") == "?":
        return None
    try:
        listed = strict_json.load_object((folder / LIST).read_bytes()).get("files")
    except strict_json.NotStrict:
        return None
    if not isinstance(listed, dict):
        return None
    return {path: str(digest) for path, digest in listed.items()}


def _not_ours(folder: Path, found: str) -> DiskFailed:
    return DiskFailed(
        f"Expected {folder} to be absent, empty, or as the last load left it, found {found}; name another "
        "folder, or move this one away."
    )
