# SPDX-License-Identifier: Apache-2.0
"""Which file names may cross from a repository or a manifest to a disk.

One rule for the mirror (names that the Hub lists) and for `pull` (names that a manifest carries): what
passes here is the same file on every file system that a bundle may travel over.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from sovereign_airgap.errors import TooManyFiles, UnsafeFileName

MAX_FILES = 4_000
MAX_COMPONENT_BYTES = 255
MAX_PATH_CHARACTERS = 300

# Names that Windows gives to devices, with or without an extension. The superscripts count as digits there.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"]
)
# Forbidden in file names on FAT and NTFS; the backslash is also a separator there.
_FORBIDDEN = frozenset('\\<>:"|?*')
# Cc control, Cf format (bidi overrides, zero width), Zl/Zp separators, Cs surrogates, Co/Cn without meaning.
_INVISIBLE = frozenset(["Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"])
# Our own temporary files and markers start with this; a repository must not be able to place one.
RESERVED_PREFIX = ".sovereign-"
_RESERVED = frozenset([".complete", ".complete-config", ".manifest", ".in-use", ".used", ".reserved"])


def defect_of(path: str) -> str | None:
    """Why this relative path is unsafe, as the end of a sentence; None where it is safe."""
    if not path:
        return "is empty"
    if len(path) > MAX_PATH_CHARACTERS:
        return f"is longer than {MAX_PATH_CHARACTERS} characters"
    for character in path:
        if unicodedata.category(character) in _INVISIBLE:
            return f"holds the invisible or control character U+{ord(character):04X}"
        if character in _FORBIDDEN:
            return f"holds {character!r}"
    if path.startswith("/"):
        return "is absolute"
    for component in path.split("/"):
        defect = _component_defect(component)
        if defect is not None:
            return defect
    return None


def _component_defect(component: str) -> str | None:
    if component == "":
        return "has an empty component"
    if component in (".", ".."):
        return f"has the component {component!r}"
    if len(component.encode("utf-8")) > MAX_COMPONENT_BYTES:
        return f"has a component longer than {MAX_COMPONENT_BYTES} bytes"
    if component != component.strip() or component.endswith("."):
        return "has a component that starts or ends with a space, or ends with a dot"
    folded = component.casefold()
    if folded.split(".", 1)[0].rstrip() in _DEVICES:
        return "has a component that names a device on Windows"
    if folded.startswith(RESERVED_PREFIX) or folded in _RESERVED:
        return "is a name that the mirror keeps for itself"
    return None


def require_safe(path: str) -> None:
    """Raises UnsafeFileName unless the path stays inside its directory everywhere."""
    defect = defect_of(path)
    if defect is not None:
        raise UnsafeFileName(
            f"Expected relative file names that are safe on every file system; {path[:200]!a} {defect}. "
            "Nothing was written; ask the publisher to rename the file, or exclude it."
        )


def require_not_hostile(path: str) -> None:
    """Raises UnsafeFileName for a name that leaves its directory or hides characters."""
    climbs = path.startswith("/") or "\\" in path or ".." in path.split("/")
    if not path or climbs or any(unicodedata.category(character) in _INVISIBLE for character in path):
        raise UnsafeFileName(
            f"Expected file names inside the repository, but {path[:200]!a} {defect_of(path)}. The listing "
            "is hostile or broken, so nothing of it was taken."
        )


def require_safe_set(paths: Iterable[str]) -> None:
    """Raises unless every path is safe, no two are the same file somewhere, and none is another's folder."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for count, path in enumerate(paths, start=1):
        if count > MAX_FILES:
            raise TooManyFiles(f"Expected at most {MAX_FILES} files, found more; narrow the selection.")
        require_safe(path)
        key = _folded(path)
        twin = seen.get(key)
        if twin is not None:
            raise UnsafeFileName(
                f"{twin!a} and {path!a} are one file where names ignore case or Unicode form; "
                "exclude one of them."
            )
        seen[key] = path
        while "/" in key:
            key = key.rpartition("/")[0]
            folders[key] = path
    for key, path in folders.items():
        if key in seen:
            raise UnsafeFileName(f"{seen[key]!a} is both a file and the folder of {path!a}.")


def _folded(path: str) -> str:
    # Folding can undo normalisation, so it is applied between two of them (Unicode 3.13, D146).
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", path).casefold())
