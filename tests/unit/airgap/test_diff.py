# SPDX-License-Identifier: Apache-2.0
"""What a newer bundle changes, and what must be carried for it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sovereign_airgap.bundle.diff import Change, Difference, Way, diff, show
from sovereign_airgap.bundle.graph import needed
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.bundle.layout import BundleReader, Directory, blob_path, read_blob
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.split import split
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective, DigestMismatch
from sovereign_airgap.manifest import Descriptor
from tests.unit.airgap.bundles import (
    COMMIT_ONE,
    IMAGE,
    LICENCE,
    MODEL_ONE,
    MODEL_TWO,
    Draft,
    a_bundle,
    a_root,
    index_of,
    model_files,
)
from tests.unit.faults import corrupter

NEW_COMMIT = "3" * 40


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The second model is gone, the first is at another commit with one shard changed, the image at another
    tag with the same content; a file has other content, and another one is new."""
    draft = Draft(tmp_path / "new")
    files = model_files(MODEL_ONE)
    files["model-00003-of-00003.safetensors"] += b"changed"
    draft.model(MODEL_ONE, NEW_COMMIT, files)
    draft.image(tag="v2")
    draft.chart()
    draft.file(LICENCE, b"MIT\n")
    draft.file("wheels/other-1.0-py3-none-any.whl", b"other")
    return draft.finish(version=2)


def compared(old: Path, new: Path) -> Difference:
    return diff(open_bundle(old), open_bundle(new))


def blobs_of(directory: Path) -> dict[Digest, int]:
    reader: BundleReader = Directory(directory)

    def document(descriptor: Descriptor) -> bytes:
        return read_blob(reader, descriptor.digest, descriptor.size)

    return needed(index_of(directory), document)


def row(found: Difference, name: str) -> Change:
    return next(change for change in found.changes if change.name == name)


def test_a_bundle_does_not_differ_from_itself(old: Path, tmp_path: Path) -> None:
    for other in (old, split(old, tmp_path / "parts", 8192).path):
        found = compared(old, other)
        assert found.changes == ()
        assert found.same == len(index_of(old).roots)
        assert (found.carry_blobs, found.carry_bytes) == (0, 0)


def test_what_came_went_and_changed_is_told_apart(old: Path, new: Path) -> None:
    found = compared(old, new)
    assert [change.name for change in found.added] == ["wheels/other-1.0-py3-none-any.whl"]
    assert f"{MODEL_TWO}:{'2' * 40}" in [change.name for change in found.removed]
    changed = {change.name: change.was for change in found.changed}
    assert changed[f"{MODEL_ONE}:{NEW_COMMIT}"] == f"{MODEL_ONE}:{COMMIT_ONE}"
    assert changed[f"{IMAGE}:v2"] == f"{IMAGE}:v1"
    assert changed[LICENCE] == LICENCE
    assert found.same == 1  # the chart


def test_what_must_be_carried_is_what_the_older_bundle_lacks(old: Path, new: Path) -> None:
    found = compared(old, new)
    before, after = blobs_of(old), blobs_of(new)
    missing = {digest: size for digest, size in after.items() if digest not in before}
    assert found.carry_blobs == len(missing)
    assert found.carry_bytes == sum(missing.values())
    assert sum(change.carry for change in found.changes) == found.carry_bytes


def test_content_under_another_tag_costs_nothing_and_shared_shards_are_not_carried(
    old: Path, new: Path
) -> None:
    found = compared(old, new)
    assert row(found, f"{IMAGE}:v2").carry == 0
    model = row(found, f"{MODEL_ONE}:{NEW_COMMIT}")
    shard = len(model_files(MODEL_ONE)["model-00003-of-00003.safetensors"])
    assert shard < model.carry < shard + 4096 < model.size


def test_the_way_back_is_the_mirror_image(old: Path, new: Path) -> None:
    there, back = compared(old, new), compared(new, old)
    assert {change.name for change in there.added} == {change.name for change in back.removed}
    assert {(change.name, change.was) for change in there.changed} == {
        (change.was, change.name) for change in back.changed
    }


def test_two_versions_of_one_repository_are_not_guessed_to_replace_each_other(tmp_path: Path) -> None:
    one, two = Draft(tmp_path / "one"), Draft(tmp_path / "two")
    for tag in ("v1", "v2"):
        one.image(tag=tag)
    for tag in ("v2", "v3", "v4"):
        two.image(tag=tag, layer=tag.encode())
    found = compared(one.finish(), two.finish())
    images = [change for change in found.changes if change.kind == "image"]
    assert [(change.way, change.name) for change in images] == [
        (Way.ADDED, f"{IMAGE}:v3"),
        (Way.ADDED, f"{IMAGE}:v4"),
        (Way.CHANGED, f"{IMAGE}:v2"),
        (Way.REMOVED, f"{IMAGE}:v1"),
    ]


def test_a_delta_is_compared_without_the_blobs_that_it_leaves_out(old: Path, new: Path) -> None:
    whole = compared(old, new)
    for digest in blobs_of(old):
        (new / blob_path(digest)).unlink(missing_ok=True)
    assert compared(old, new) == whole


def test_a_damaged_manifest_is_not_compared(old: Path, new: Path) -> None:
    path = new / blob_path(a_root(new, MODEL_ONE).descriptor.digest)
    corrupter.flip(path)
    with pytest.raises(DigestMismatch):
        compared(old, new)
    path.unlink()
    with pytest.raises(BundleDefective):
        compared(old, new)


def test_two_thousand_roots_are_compared_at_once(tmp_path: Path) -> None:
    one, two = Draft(tmp_path / "one"), Draft(tmp_path / "two")
    for number in range(1000):
        one.file(f"files/{number}", b"same")
        two.file(f"files/{number + 500}", b"same")
    found = compared(one.finish(), two.finish())
    assert len(found.added) == len(found.removed) == 500


# -- how it is shown ----------------------------------------------------------------------------------------


def test_the_table_names_every_change_and_ends_with_the_sum(old: Path, new: Path) -> None:
    console = Console(file=io.StringIO(), width=250)
    found = compared(old, new)
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1 + len(found.changes) + 1
    assert lines[-1].startswith("From site 1 to site 2: 1 added, ")
    assert lines[-1].endswith(f"{found.carry_blobs} blobs of {found.carry_bytes} bytes to carry.")


def test_names_in_the_table_are_no_markup(tmp_path: Path, old: Path) -> None:
    draft = Draft(tmp_path / "marked")
    draft.file("wheels/[red]x[link=evil]", b"x")
    console = Console(file=io.StringIO(), width=250)
    show(compared(old, draft.finish()), console)
    assert isinstance(console.file, io.StringIO)
    assert "[red]x[link=evil]" in console.file.getvalue()


def test_the_command_prints_a_table_or_one_document(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", "diff", str(old), str(new)]) == 0
    assert "to carry" in capsys.readouterr().out
    assert run(["bundle", "diff", str(old), str(new), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == compared(old, new).as_json()
    assert run(["bundle", "diff", str(old), str(old / "absent")]) == 3


def test_an_index_that_is_none_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleDefective):
        Index.parse(b"{}")
    bad = a_bundle(tmp_path / "bad")
    corrupter.truncate(bad / "index.json")
    with pytest.raises(BundleDefective):
        compared(old, bad)
