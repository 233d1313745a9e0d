# SPDX-License-Identifier: Apache-2.0
"""Fetching on bad disks and in processes that die: no marker lies, and the next fetch goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sovereign_airgap.cache.layout import Entry
from sovereign_airgap.errors import CacheFull, DiskFailed
from tests.unit.airgap.cache_node import OTHER_FILES, Node, written
from tests.unit.faults.corrupter import BadDisk

# Every failing change is a run, every point of death a process of its own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
CODES = {errno.ENOSPC: CacheFull, errno.EROFS: DiskFailed, errno.EIO: DiskFailed}


def require_no_lie(entry: Entry, at: int) -> None:
    for config_only in (True, False):
        for path, promised in (entry.vouched(config_only) or {}).items():
            assert written(entry.folder / path) == promised, f"change {at}: {path}"


def test_a_disk_that_fails_at_any_change_leaves_no_lie_and_the_next_fetch_succeeds(node: Node) -> None:
    node.fetch()
    entry = node.entry(node.other)
    with BadDisk(node.cache.root, 0, errno.EIO) as counted:
        node.fetch(node.other)
    assert counted.changes > 20
    failures = 0
    for at in range(1, counted.changes + 1):
        code = list(CODES)[at % len(CODES)]
        entry.folder.rename(entry.folder.with_name(f".evicted-{at}"))
        try:
            with BadDisk(node.cache.root, at, code):
                node.fetch(node.other)
        except (CacheFull, DiskFailed) as error:
            assert type(error) is CODES[code], f"change {at}: {error}"
            assert os.strerror(code) in str(error)
            failures += 1
        require_no_lie(entry, at)
        assert node.fetch(node.other).repaired == (), f"change {at}"
        node.require_whole(entry, OTHER_FILES)
        node.require_whole(node.entry())
    # A link that cannot be made is a file that is fetched; syncs of folders and late removals are only tried.
    assert failures > counted.changes // 2


SCRIPT = """
import sys
from pathlib import Path
from sovereign_airgap.access import Access
from sovereign_airgap.cache.fetch import FetchOptions, fetch
from sovereign_airgap.cache.layout import Cache
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions
from sovereign_airgap.reference import OciReference
from tests.unit.faults.corrupter import DyingProcess

reference, root, at = sys.argv[1:]
options = FetchOptions(PullOptions(access=Access(plain_http=True), parallel=1))
with DyingProcess(Path(root), int(at), 0) as dying:
    fetch(OciReference.parse(reference), Cache(Path(root)), "team-a", options, Progress())
print(dying.changes)
"""


def dies(node: Node, at: int) -> int:
    """Fetches in a process that ends as by kill -9 at its nth change of the disk, without a sibling to link
    from; returns for 0 the number of changes."""
    reference = f"oci://{node.one.host}/{node.one.repository}@{node.other.digest}"
    arguments = [reference, str(node.cache.root), str(at)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == (137 if at else 0), done.stderr
    return 0 if at else int(done.stdout)


def test_a_fetch_that_is_killed_leaves_what_the_next_one_goes_on_with(node: Node) -> None:
    changes = dies(node, 0)
    entry = node.entry(node.other)
    for at in (1, *range(2, changes, 7), changes - 1, changes):
        entry.folder.rename(entry.folder.with_name(f".evicted-{at}"))
        dies(node, at)
        require_no_lie(entry, at)
        there = {path for path, content in OTHER_FILES.items() if is_there(entry.folder / path, content)}
        found = node.fetch(node.other)
        missing = sum(len(content) for path, content in OTHER_FILES.items() if path not in there)
        assert (found.fetched, found.repaired) == (missing, ()), f"change {at} of {changes}"
        node.require_whole(entry, OTHER_FILES)
        assert not list(entry.folder.rglob("*.partial"))


def is_there(place: Path, content: bytes) -> bool:
    return place.exists() and place.read_bytes() == content
