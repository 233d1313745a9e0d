# SPDX-License-Identifier: Apache-2.0
"""The verbs verify and split: exit codes, one document with --json, sizes as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import BadParameter

from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.cli import run
from sovereign_airgap.errors import (
    BundleDefective,
    DigestMismatch,
)
from sovereign_airgap.options import SIZE
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.keys import PublicKey
from tests.unit.airgap.bundles import a_bundle, index_digest
from tests.unit.airgap.verifying import signed, the_largest_shard
from tests.unit.faults import corrupter


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return a_bundle(tmp_path / "bundle", width=64)


@pytest.fixture
def key(bundle: Path) -> PublicKey:
    """Of a key that has signed the bundle."""
    return signed(bundle)


@pytest.fixture
def key_file(key: PublicKey, tmp_path: Path) -> Path:
    path = tmp_path / "key.pub"
    path.write_bytes(key.pem())
    return path


def test_the_command_says_by_whom_and_writes_its_result(
    bundle: Path, key: PublicKey, key_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result"
    command = ["bundle", "verify", str(bundle), "--key", str(key_file), "--progress", "none"]
    assert run([*command, "--result-file", str(result)]) == 0
    assert f"signed by {key.key_id}" in capsys.readouterr().out
    assert json.loads(result.read_bytes())["reason"] == "Verified"
    assert run(["verify", str(bundle), "--key", str(key_file)]) == 0


def test_the_command_exits_with_3_and_a_line_for_every_defect(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupter.flip(the_largest_shard(bundle))
    (bundle / "surplus").touch()
    result = tmp_path / "result"
    command = ["bundle", "verify", str(bundle), "--progress", "none", "--result-file", str(result)]
    assert run(command) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 3
    assert json.loads(result.read_bytes())["reason"] == "BundleDefective"


@pytest.mark.parametrize("damaged", [False, True])
def test_with_json_there_is_one_document_whatever_was_found(
    bundle: Path, damaged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if damaged:
        corrupter.flip(the_largest_shard(bundle))
    assert run(["bundle", "verify", str(bundle), "--json", "--progress", "none"]) == (3 if damaged else 0)
    document = json.loads(capsys.readouterr().out)
    assert document["index"] == str(index_digest(bundle))
    assert [defect["reason"] for defect in document["defects"]] == (["DigestMismatch"] if damaged else [])


def test_the_command_refuses_what_is_no_bundle_and_a_threshold_without_keys(tmp_path: Path) -> None:
    assert run(["bundle", "verify", str(tmp_path / "absent"), "--progress", "none"]) == 3
    assert run(["bundle", "verify", str(tmp_path), "--threshold", "2"]) == 2


def test_the_command_split_writes_parts_that_verify(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bundle", "split", str(bundle), "-o", str(out), "--part-size", "8KiB", "--progress", "none"]
    assert run([*command, "--result-file", str(tmp_path / "result")]) == 0
    assert json.loads((tmp_path / "result").read_bytes())["parts"] == len(list(out.glob("*.part-*")))
    assert run(["bundle", "verify", str(out), "--progress", "none"]) == 0
    assert run(["bundle", "split", str(bundle), "-o", str(out), "--part-size", "8 apples"]) == 2


def test_mixed_reasons_are_a_defective_bundle_and_one_reason_keeps_its_name(bundle: Path) -> None:
    corrupter.flip(the_largest_shard(bundle))
    with pytest.raises(DigestMismatch):
        verify(open_bundle(bundle), (), 1, Progress())
    (bundle / "surplus").touch()
    with pytest.raises(BundleDefective):
        verify(open_bundle(bundle), (), 1, Progress())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5B", 5),
        ("3K", 3072),
        ("3KiB", 3072),
        ("3kb", 3000),
        ("4000MiB", 4000 << 20),
        ("4 GB", 4 * 10**9),
    ],
)
def test_a_part_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5G", "1e9", "1X", "MiB", "", "1" * 30])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(BadParameter):
        SIZE.convert(text, None, None)
