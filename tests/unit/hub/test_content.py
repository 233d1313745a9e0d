# SPDX-License-Identifier: Apache-2.0
"""Commits and ids of the hub double are git's own."""

import os
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dev.hub import git
from dev.hub.repository import HubFolder
from tests.unit.hub.conftest import FILES, write


def git_says(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


WHO = {"NAME": "Hub double", "EMAIL": "hub@localhost", "DATE": "@0 +0000"}


def test_the_commit_is_the_one_git_makes_of_the_same_files(root: Path, tmp_path: Path) -> None:
    repository = HubFolder(root).repository("acme/tiny")
    assert repository is not None
    assert repository.main is not None
    weights = repository.main.files["model.safetensors"]
    assert weights.sha256 is not None
    as_git_keeps_it = FILES | {"model.safetensors": git.lfs_pointer(weights.sha256, weights.size)}
    work = tmp_path / "work"
    write(work, as_git_keeps_it)
    git_says(work, "init", "-q")
    git_says(work, "add", ".")

    assert repository.main.trees[""] == git_says(work, "write-tree")
    assert repository.main.trees["notes"] == git_says(work, "write-tree", "--prefix=notes/")
    expected = git_says(work, "commit-tree", "-m", "Content", repository.main.trees[""])
    assert repository.main.commit == expected


def test_changed_content_is_another_commit_and_the_old_one_is_gone(root: Path) -> None:
    folder = HubFolder(root)
    before = folder.repository("acme/tiny")
    (root / "acme/tiny/model.safetensors").write_bytes(b"other")
    after = folder.repository("acme/tiny")

    assert before is not None
    assert after is not None
    assert before.main is not None
    assert after.revision(before.main.commit) is None


def test_markers_are_not_content(root: Path) -> None:
    before = HubFolder(root).repository("acme/tiny")
    (root / "acme/tiny/.gated").write_text("")
    after = HubFolder(root).repository("acme/tiny")

    assert before is not None
    assert after is not None
    assert before.main == after.main
    assert after.gated_for == frozenset()


PATHS = st.lists(st.sampled_from(["a", "b", "c.d", "a.b"]), min_size=1, max_size=4).map("/".join)


@given(st.sets(PATHS, max_size=12))
def test_every_folder_above_a_file_has_a_tree(paths: set[str]) -> None:
    trees = git.tree_ids(dict.fromkeys(paths, git.blob_id(b"")))

    above = {path.rsplit("/", n)[0] for path in paths for n in range(1, path.count("/") + 1)}
    assert trees.keys() == {"", *above}
