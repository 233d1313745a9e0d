# SPDX-License-Identifier: Apache-2.0
"""Whatever makes a pod refuse an entry of the cache, the next fetch puts right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap.cache import scrub as scrubbing
from sovereign_airgap.cache.hold import HoldOptions, hold
from sovereign_airgap.cache.layout import Entry
from sovereign_airgap.errors import CacheCorrupt, CacheMissing
from sovereign_airgap.marker import encode_marker
from sovereign_airgap.progress import Progress
from tests.unit.airgap.cache_entries import rot
from tests.unit.airgap.cache_node import SHARD, Node, digest_of
from tests.unit.airgap.holding import Script
from tests.unit.airgap.shelf import FILES


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILT = {
    "time": lambda entry: later(entry.folder / "config.json"),
    "size": lambda entry: os.truncate(entry.folder / "config.json", 3),
    "missing": lambda entry: (entry.folder / "config.json").unlink(),
    "link": lambda entry: a_link(entry.folder / "config.json"),
    "folder": lambda entry: a_folder(entry.folder / "config.json"),
    "pipe": lambda entry: os.mkfifo(entry.folder / "pipe"),
    "stranger": lambda entry: (entry.folder / "chat_template.jinja").touch(),
    "linked stranger": lambda entry: (entry.folder / "more").symlink_to("/etc"),
    "no manifest": lambda entry: (entry.folder / ".manifest").unlink(),
    "another manifest": lambda entry: (entry.folder / ".manifest").write_bytes(b"{}"),
    "forged markers": lambda entry: [marker.write_bytes(encode_marker(str(entry.digest), {})) for marker in
                                     entry.folder.glob(".complete*")],
    "torn markers": lambda entry: [os.truncate(marker, 9) for marker in entry.folder.glob(".complete*")],
}  # fmt: skip


def held(node: Node, folder: Path, config_only: bool, always: bool = False) -> bool:
    entry = node.entry()
    try:
        hold(
            entry.folder.parent,
            digest_of(node.one),
            folder / "held",
            HoldOptions(config_only, always, seconds=0),
            Script(),
        )
    except (CacheCorrupt, CacheMissing):
        return False
    return True


@pytest.mark.parametrize("config_only", [False, True], ids=["everything", "without weights"])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_what_a_pod_refuses_the_next_fetch_repairs(
    node: Node, tmp_path: Path, spoil: Callable[[Entry], object], config_only: bool
) -> None:
    node.fetch(config_only=config_only)
    assert held(node, tmp_path, config_only)
    spoil(node.entry())
    assert not held(node, tmp_path, config_only)
    node.fetch(config_only=config_only)
    assert held(node, tmp_path, config_only, always=True)


@pytest.mark.parametrize("path", [SHARD, "config.json"])
def test_what_has_rotted_a_scrub_withdraws_and_the_next_fetch_repairs(
    node: Node, tmp_path: Path, path: str
) -> None:
    node.fetch()
    rot(node.entry().folder / path)
    assert held(node, tmp_path, config_only=False), "nobody looked at the bytes"
    assert not held(node, tmp_path, config_only=False, always=True)
    scrubbing.scrub(node.cache, Progress())
    assert not held(node, tmp_path, config_only=False)
    assert node.fetch().repaired == (path,)
    assert held(node, tmp_path, config_only=False, always=True)


def test_a_scrub_refuses_what_a_pod_refuses(node: Node, tmp_path: Path) -> None:
    for spoil in SPOILT.values():
        node.fetch()
        assert held(node, tmp_path, config_only=False)
        spoil(node.entry())
        (examined,) = scrubbing.scrub(node.cache, Progress())
        assert examined.state is scrubbing.State.DAMAGED
        assert not (node.entry().complete or node.entry().config_only)


def test_one_who_needs_no_weights_is_served_while_they_are_fetched(node: Node, tmp_path: Path) -> None:
    node.fetch(config_only=True)
    (node.entry().folder / SHARD).write_bytes(FILES[SHARD][:1000])
    assert held(node, tmp_path, config_only=True, always=True)
    node.fetch()
    for config_only in (True, False):
        assert held(node, tmp_path, config_only, always=True)
