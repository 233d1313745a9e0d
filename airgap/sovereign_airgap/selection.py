# SPDX-License-Identifier: Apache-2.0
"""What is taken from a model repository: an allow list, one verdict per file.

Pure: a listing goes in, a plan with a sentence for every file left out comes out. Nothing executable is on
the list, so no wish of the user can take it either; include and exclude only narrow.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sovereign_airgap import strict_json
from sovereign_airgap.errors import IndexNamesMissingFile, MalformedConfig, NothingServable, TooManyFiles
from sovereign_airgap.manifest import DOC_TYPE, WEIGHT_CONFIG_TYPE, WEIGHT_TYPE, commit_tag
from sovereign_airgap.names import MAX_FILES, defect_of, require_not_hostile, require_safe_set

WEIGHTS = ".safetensors"
INDEX = ".safetensors.index.json"
MODEL_INDEX = "model.safetensors.index.json"
MODEL_SINGLE = "model.safetensors"
MAX_INDEX_BYTES = 16 * 1024 * 1024

_TOKENIZER_FILES = frozenset(["tokenizer.model", "merges.txt", "vocab.txt"])
_DOCUMENTS = ("readme", "license", "notice")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (".gguf", ".onnx", ".h5", ".msgpack")
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")


@dataclass(frozen=True, slots=True)
class Wish:
    """The user's include and exclude globs; `*` also matches `/`, as on the Hub."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def text(self) -> str | None:
        """The wish as it stands in the manifest: canonical JSON; None where nothing was wished."""
        if not self.include and not self.exclude:
            return None
        wish = {"exclude": sorted(set(self.exclude)), "include": sorted(set(self.include))}
        return json.dumps(wish, ensure_ascii=False, separators=(",", ":"))

    def tag(self, revision: str) -> str:
        """The tag of a commit under this wish: the commit, plus 8 hex digits of the wish if there is one."""
        return commit_tag(revision, self.text)

    def defect_of(self, path: str) -> str | None:
        if self.include and not any(fnmatchcase(path, glob) for glob in self.include):
            return "is not among --include"
        if any(fnmatchcase(path, glob) for glob in self.exclude):
            return "is among --exclude"
        return None


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that becomes a layer."""

    path: str
    media_type: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that stays behind, and why (the end of a sentence)."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The verdict over a whole listing; both lists are sorted by path."""

    taken: tuple[Taken, ...]
    left_out: tuple[LeftOut, ...]


def media_type_of(path: str) -> str | None:
    """The layer type of a file that is on the allow list, else None."""
    name = posixpath.basename(path).lower()
    if name.endswith(WEIGHTS):
        return WEIGHT_TYPE
    if name.endswith((".json", ".tiktoken", ".jinja")) or name in _TOKENIZER_FILES:
        return WEIGHT_CONFIG_TYPE
    stem, _, extension = name.partition(".")
    if stem.startswith(_DOCUMENTS) and extension in ("", "md", "txt", "rst", "pdf", "html"):
        return DOC_TYPE
    return None


def why_never(path: str) -> str:
    """Why a file is not on the allow list, for the output."""
    name = posixpath.basename(path).lower()
    if name.endswith(".py"):
        return "is code, which is never taken"
    if name.endswith(_PICKLES):
        return "may be a pickle, which runs code when it is loaded"
    if name.endswith(_OTHER_WEIGHTS):
        return "is weights in a format that is not served"
    if name.endswith(_IMAGES):
        return "is a picture"
    return "is not on the allow list"


def index_paths(paths: Sequence[str], wish: Wish) -> tuple[str, ...]:
    """The index files whose content `select` needs, sorted."""
    return tuple(sorted(p for p in paths if p.lower().endswith(INDEX) and wish.defect_of(p) is None))


def shards_of(index_path: str, content: bytes) -> frozenset[str]:
    """The weight files that an index names, relative to the repository's root."""
    try:
        weight_map = strict_json.load_object(content).get("weight_map")
    except strict_json.NotStrict as error:
        raise MalformedConfig(
            f"Expected {index_path} to be a JSON object, found: {str(error)[:200]}; ask the publisher for a "
            "repaired one."
        ) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedConfig(f"Expected {index_path} to hold a weight_map, found none.")
    folder = posixpath.dirname(index_path)
    shards = set()
    for shard in weight_map.values():
        if not isinstance(shard, str) or defect_of(shard) is not None or not shard.endswith(WEIGHTS):
            raise IndexNamesMissingFile(
                f"Expected {index_path} to name {WEIGHTS} files beside it, found {ascii(shard)[:200]}; "
                "ask the publisher for a repaired one."
            )
        shards.add(posixpath.join(folder, shard))
    return frozenset(shards)


def select(paths: Sequence[str], wish: Wish, indices: Mapping[str, bytes]) -> Selection:
    """Decides over a listing.

    `indices` holds the content of every file that `index_paths` named. Raises UnsafeFileName,
    IndexNamesMissingFile, MalformedConfig or NothingServable; the order of `paths` does not matter.
    """
    candidates: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        media_type = media_type_of(path)
        wished_away = wish.defect_of(path)
        if media_type is None:
            left_out[path] = why_never(path)
        elif wished_away is not None:
            left_out[path] = wished_away
        else:
            candidates[path] = media_type
    # A listing that tries to leave the directory is hostile, whichever file tries; the finer rules (twins,
    # names that only Windows minds) are for what would be written.
    for path in paths:
        require_not_hostile(path)
    if len(paths) > MAX_FILES:
        raise TooManyFiles(f"Expected at most {MAX_FILES} files in the repository, found {len(paths)}.")
    require_safe_set(candidates)

    shards = {path: shards_of(path, indices[path]) for path in index_paths(tuple(candidates), Wish())}
    for path, why in _duplicate_sets(candidates, shards):
        left_out[path] = why
        del candidates[path]
        shards.pop(path, None)
    for path, names in sorted(shards.items()):
        missing = sorted(names - candidates.keys())
        if missing:
            why = left_out.get(missing[0], "is not in the repository")
            raise IndexNamesMissingFile(
                f"{path} names {len(names)} weight files, but {missing[0]!a} {why} ({len(missing)} missing); "
                "choose another commit, or take both or neither with --include and --exclude."
            )
    if WEIGHT_TYPE not in candidates.values():
        pickles = sum(1 for path in paths if path.lower().endswith(_PICKLES))
        found = f"{pickles} pickle files" if pickles else f"{len(paths)} files, none of them {WEIGHTS}"
        raise NothingServable(
            f"Expected at least one {WEIGHTS} file, found {found}; choose a repository or commit "
            "with safetensors."
        )
    return Selection(
        taken=tuple(Taken(path, candidates[path]) for path in _sorted(candidates)),
        left_out=tuple(LeftOut(path, left_out[path]) for path in _sorted(left_out)),
    )


def _duplicate_sets(
    candidates: Mapping[str, str], shards: Mapping[str, frozenset[str]]
) -> list[tuple[str, str]]:
    """Where the same weights lie twice at the root, the set that goes: one set is served, once."""
    weights = {path for path, kind in candidates.items() if kind == WEIGHT_TYPE and "/" not in path}
    consolidated = {path for path in weights if path.startswith("consolidated")}
    model = {path for path in weights if path.startswith("model")}
    if not consolidated or not model:
        return []
    if MODEL_INDEX in shards or MODEL_SINGLE in model:
        keep, drop, name = "model", consolidated, "consolidated"
    else:
        keep, drop, name = "consolidated", model, "model"
    drop |= {path for path in shards if "/" not in path and path.startswith(name)}
    return [(path, f"is the same weights again; the {keep}* set is taken") for path in sorted(drop)]


def _sorted(paths: Mapping[str, str]) -> list[str]:
    return sorted(paths, key=lambda path: path.encode("utf-8"))
