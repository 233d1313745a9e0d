# SPDX-License-Identifier: Apache-2.0
"""The real huggingface_hub client is content with the hub double."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, RepoFile, RepoFolder
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dev.hub import HubServer, git
from tests.unit.hub.conftest import FILES, write

Client = Callable[..., HfApi]


def test_model_info_lists_sizes_git_ids_and_lfs_digests(hub: HubServer, client: Client) -> None:
    info = client().model_info("acme/tiny", revision=hub.commit("acme/tiny"), files_metadata=True)

    assert info.id == "acme/tiny"
    assert info.sha == hub.commit("acme/tiny")
    assert info.siblings is not None
    by_name = {one.rfilename: one for one in info.siblings}
    assert by_name.keys() == FILES.keys()
    assert {name: one.size for name, one in by_name.items()} == {name: len(b) for name, b in FILES.items()}
    weights = by_name["model.safetensors"].lfs
    assert weights is not None
    assert weights.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    pointer = git.lfs_pointer(weights.sha256, weights.size)
    assert weights.pointer_size == len(pointer)
    assert by_name["model.safetensors"].blob_id == git.blob_id(pointer)
    assert by_name["config.json"].blob_id == git.blob_id(FILES["config.json"])
    assert by_name["config.json"].lfs is None


def test_mutable_fields_move_and_the_commit_does_not(client: Client) -> None:
    first, second = client().model_info("acme/tiny"), client().model_info("acme/tiny")

    assert first.downloads != second.downloads
    assert first.sha == second.sha


def test_the_tree_is_listed_folder_by_folder_or_whole(client: Client) -> None:
    api = client()

    top = {entry.path: type(entry) for entry in api.list_repo_tree("acme/tiny")}
    assert top["notes"] is RepoFolder
    assert top["notes.txt"] is RepoFile
    assert "notes/deep/er.txt" not in top
    assert [entry.path for entry in api.list_repo_tree("acme/tiny", "notes/deep")] == ["notes/deep/er.txt"]
    whole = {entry.path for entry in api.list_repo_tree("acme/tiny", recursive=True)}
    assert whole == {*FILES, "notes", "notes/deep"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("acme/tiny", "no/such/folder"))


@pytest.mark.parametrize(("files", "expand", "pages"), [(1203, False, 2), (120, True, 3)])
def test_a_long_tree_comes_in_pages(
    root: Path, client: Client, hub: HubServer, files: int, expand: bool, pages: int
) -> None:
    names = [f"part-{n:05}.json" for n in range(files)]
    write(root / "acme/long", dict.fromkeys(names, b"{}"))

    listed = [entry.path for entry in client().list_repo_tree("acme/long", recursive=True, expand=expand)]

    assert listed == names
    assert len([seen for seen in hub.requests if "/tree/" in seen.path]) == pages


def test_expanded_entries_carry_their_commit(client: Client, hub: HubServer) -> None:
    entries = list(client().list_repo_tree("acme/tiny", expand=True))

    assert {e.last_commit.oid for e in entries if e.last_commit} == {hub.commit("acme/tiny")}
    assert all(entry.last_commit for entry in entries)


def test_paths_and_refs_are_told(client: Client, hub: HubServer) -> None:
    [info] = client().get_paths_info("acme/tiny", ["model.safetensors", "missing.txt"])

    assert isinstance(info, RepoFile)
    assert info.lfs is not None
    [main] = client().list_repo_refs("acme/tiny").branches
    assert (main.name, main.target_commit) == ("main", hub.commit("acme/tiny"))


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_downloaded_as_it_is(client: Client, hub: HubServer, tmp_path: Path, name: str) -> None:
    path = client("").hf_hub_download("acme/tiny", name, cache_dir=tmp_path / "cache")

    assert Path(path).read_bytes() == FILES[name]
    assert hub.commit("acme/tiny") in path


def test_a_snapshot_by_commit_is_the_folder(client: Client, hub: HubServer, tmp_path: Path) -> None:
    commit = hub.commit("acme/tiny")

    target = tmp_path / "copy"
    client().snapshot_download("acme/tiny", revision=commit, local_dir=target)

    copied = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert {name: body for name, body in copied.items() if not name.startswith(".cache/")} == FILES
    assert hub.violations == []


def test_a_token_stays_with_the_hub(root: Path, client: Client, hub: HubServer, tmp_path: Path) -> None:
    (root / "acme/tiny/.gated").write_text("hf_friend\n")

    client("hf_friend").hf_hub_download("acme/tiny", "model.safetensors", cache_dir=tmp_path / "cache")

    assert any(seen.authorized for seen in hub.requests if seen.origin == "hub")
    assert [seen.authorized for seen in hub.requests if seen.origin == "storage"] == [False]
    assert hub.violations == []


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("hf_stranger", 403)], ids=["signed out", "not on the list"]
)
def test_gated_files_are_refused_and_their_listing_is_not(
    root: Path, hub: HubServer, client: Client, tmp_path: Path, token: str | None, status: int
) -> None:
    (root / "acme/tiny/.gated").write_text("hf_friend\n")
    write(root / "acme/other", {"config.json": b"{}"})
    (root / "acme/other/.gated").write_text("hf_stranger\n")

    info = client(token).model_info("acme/tiny")
    assert info.gated == "auto"
    with pytest.raises(GatedRepoError) as refused:
        client(token).hf_hub_download("acme/tiny", "config.json", cache_dir=tmp_path / "cache")
    assert refused.value.response.status_code == status


@pytest.mark.parametrize("repo", ["acme/missing", "acme/secret"])
def test_strangers_cannot_tell_missing_from_private(root: Path, client: Client, repo: str) -> None:
    write(root / "acme/secret", {"config.json": b"{}", ".private": b"hf_friend\n"})

    with pytest.raises(RepositoryNotFoundError) as refused:
        client().model_info(repo)

    assert refused.value.response.status_code == 401
    if repo == "acme/secret":
        assert client("hf_friend").model_info(repo).private is True


def test_an_unknown_token_is_named_as_such(client: Client) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        client("hf_invented").model_info("acme/tiny")

    assert refused.value.response.status_code == 401
    assert "Invalid credentials" in str(refused.value)


def test_a_missing_revision_and_a_missing_file_are_told_apart(client: Client, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError):
        client().model_info("acme/tiny", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        client().hf_hub_download("acme/tiny", "missing.json", cache_dir=tmp_path / "cache")


def test_a_name_in_another_case_leads_to_the_canonical_one(client: Client) -> None:
    assert client().model_info("ACME/Tiny", files_metadata=True).id == "acme/tiny"


def test_labelled_folders_are_revisions(root: Path, client: Client, hub: HubServer) -> None:
    write(root / "acme/many/@v1", {"config.json": b'{"v": 1}'})
    write(root / "acme/many/@v2", {"config.json": b'{"v": 2}'})

    first, second = hub.commit("acme/many", "v1"), hub.commit("acme/many", "v2")

    assert first != second
    assert client().model_info("acme/many").sha == second
    assert client().model_info("acme/many", revision="v1").sha == first
    assert client().model_info("acme/many", revision=first).sha == first
