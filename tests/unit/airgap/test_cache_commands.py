# SPDX-License-Identifier: Apache-2.0
"""`cache fetch` and `cache list` as commands: results for programs, tables for people, exit codes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from sovereign_airgap.cache.layout import IN_USE, usage
from sovereign_airgap.cache.locks import alone
from sovereign_airgap.cache.room import on_disk
from sovereign_airgap.cli import RESULT_BYTES, run
from sovereign_airgap.options import AMOUNT
from tests.unit.airgap.cache_entries import an_entry, rot
from tests.unit.airgap.cache_node import MIB, SHARD, Node, an_artifact, size_of
from tests.unit.airgap.shelf import FILES
from tests.unit.airgap.test_cli import QUICK


def result_of(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    assert len(content) <= RESULT_BYTES
    document: dict[str, object] = json.loads(content)
    return document


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


@pytest.fixture
def command(node: Node, result_file: Path) -> list[str]:
    return ["cache", "fetch", f"oci://{node.one.host}/{node.one.repository}@{node.one.digest}",
            "--root", str(node.cache.root), "--tenant", "team-a", *QUICK, "--progress", "none",
            "--result-file", str(result_file)]  # fmt: skip


def test_a_fetch_tells_what_it_did(
    node: Node, command: list[str], result_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 0
    result = result_of(result_file)
    seconds = result.pop("seconds")
    assert isinstance(seconds, float) and seconds > 0
    size = size_of(FILES)
    message = str(result.pop("message"))
    assert result == {
        "reason": "Fetched",
        "digest": str(node.one.digest),
        "bytes": size,
        "files": 4,
        "fetchedBytes": size,
        "linkedBytes": 0,
        "keptBytes": 0,
        "evicted": [],
        "repaired": [],
    }
    assert capsys.readouterr().out.strip() == message
    assert f"{size} bytes were fetched, 0 linked, 0 were there." in message

    rot(node.entry().folder / SHARD)
    assert run([*command, "--verify", "always", "--budget", "1GiB", "--reserve", "0", "--parallel", "2"]) == 0
    result = result_of(result_file)
    assert (result["repaired"], result["keptBytes"]) == ([SHARD], size - len(FILES[SHARD]))
    assert "1 files were damaged" in str(result["message"])
    assert run([*command, "--config-only"]) == 0
    assert result_of(result_file)["files"] == 3


def test_pods_of_any_user_can_read_what_was_fetched_under_any_umask(node: Node, command: list[str]) -> None:
    before = os.umask(0o077)
    try:
        assert run(command) == 0
    finally:
        os.umask(before)
    folder = node.entry().folder
    for place in (folder.parent, folder, *folder.rglob("*")):
        wanted = 0o755 if place.is_dir() else 0o644
        assert stat.S_IMODE(place.lstat().st_mode) == wanted, place


def test_a_fetch_names_who_had_to_go(node: Node, command: list[str], result_file: Path) -> None:
    old = an_artifact(node, "old")
    node.fetch(old, "team-b")
    assert run([*command, "--budget", str(MIB)]) == 0
    assert result_of(result_file)["evicted"] == [f"team-b/{old.digest}"]
    node.fetch(old, "team-b")
    failed = run([*command[:2], command[2].replace(node.one.digest.hex, node.other.digest.hex), *command[3:],
                  "--budget", "1", "--keep", str(old.digest)])  # type: ignore[union-attr]  # fmt: skip
    result = result_of(result_file)
    assert (failed, result["reason"]) == (1, "CacheFull")


def test_the_result_stays_small(node: Node, command: list[str], result_file: Path) -> None:
    for number in range(40):
        an_entry(node.cache.root, "t" * 60 + str(number), files={"a": b"x" * 5000})
    node.fetch()
    for number in range(40):
        (node.entry().folder / ("é" * 60 + f"{number}.safetensors")).touch()
    (node.entry().folder / SHARD).unlink()
    assert run([*command, "--budget", str(usage([node.entry()]) + on_disk([len(FILES[SHARD])]))]) == 0
    result = result_of(result_file)
    for name, count in (("evicted", 40), ("repaired", 40)):
        listed = result[name]
        assert isinstance(listed, list)
        assert 2 < len(listed) <= 17
        assert listed[-1] == f"and {count - len(listed) + 1} more"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--tenant", "Team A"], "--tenant"),
        (["--tenant", "../team-a"], "--tenant"),
        (["--keep", "sha256:abc"], "--keep"),
        (["--budget", "much"], "--budget"),
        (["--budget", "-1"], "--budget"),
        (["--verify", "never"], "--verify"),
        (["--root", "/nonexistent/cache"], "--root"),
        (["--parallel", "0"], "--parallel"),
    ],
)
def test_wrong_usage_is_exit_2(
    node: Node,
    command: list[str],
    result_file: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    said: str,
) -> None:
    assert run([*command, *change]) == 2
    assert said in capsys.readouterr().err
    assert result_of(result_file)["reason"] == "Usage"
    assert list(node.cache.root.iterdir()) == []


def test_a_tag_is_wrong_usage(node: Node, command: list[str], result_file: Path) -> None:
    assert run([*command[:2], f"oci://{node.one.host}/models/org/name:latest", *command[3:]]) == 2
    assert "tags can move" in str(result_of(result_file)["message"])


def test_amounts_may_be_nothing() -> None:
    assert [AMOUNT.convert(text, None, None) for text in ("0", 0, "10Gi", "7")] == [0, 0, 10 << 30, 7]


def test_the_list_says_what_there_is(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    listing = ["cache", "list", "--root", str(node.cache.root), "--budget", "1GiB"]
    node.fetch()
    node.fetch(node.other, "team-b", config_only=True)
    partial = an_entry(node.cache.root, "team-c", complete=False)
    with (node.entry().folder / IN_USE).open("rb") as held, alone(partial.folder):
        fcntl.flock(held, fcntl.LOCK_SH)
        assert run([*listing, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert run(listing) == 0
        table = capsys.readouterr().out
    assert [(each["tenant"], each["state"]) for each in found["entries"]] == [
        ("team-c", "partial"),
        ("team-a", "complete"),
        ("team-b", "config"),
    ]
    assert [(each["inUse"], each["beingWritten"]) for each in found["entries"]] == [
        (False, True),
        (True, False),
        (False, False),
    ]
    assert found["entries"][1]["digest"] == str(node.one.digest)
    assert [each["used"] for each in found["entries"]] == [0, 1, 2]
    assert found["bytes"] == sum(each["bytes"] for each in found["entries"])
    assert found["budget"] == 1 << 30
    for word in ("team-a", "complete", "config", "partial", "pods", "a fetch", "nobody", "never", "#2",
                 node.entry().digest.hex[:12], "3 artifacts", "of a budget of 1,073,741,824"):  # fmt: skip
        assert word in table, table


def test_an_empty_cache_has_an_empty_list(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "list", "--root", str(node.cache.root)]) == 0
    assert capsys.readouterr().out.strip() == "0 artifacts, 0 bytes"
    assert run(["cache", "list", "--root", str(node.cache.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"entries": [], "bytes": 0, "budget": None}
    assert run(["cache", "list"]) == 2
