# SPDX-License-Identifier: Apache-2.0
"""Creating a bundle on bad disks and in processes that die: no bundle is there, and the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap import disk
from sovereign_airgap.bundle.create import CreateResult
from sovereign_airgap.bundle.layout import Directory
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.spec import BundleSpec
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.errors import BundleExists, DigestMismatch, DiskFailed, DiskFull, SovereignError
from sovereign_airgap.hub_stream import HubStream
from sovereign_airgap.progress import Progress
from tests.unit.airgap.creations import SHARED, Connected, Opened, digest_of
from tests.unit.airgap.models import REPO, write
from tests.unit.faults.corrupter import BadDisk, extend, flip, hard_link, symlink, truncate, zero

# Every point of death is a process of its own, every failing change a run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]


def small_spec(side: Connected) -> BundleSpec:
    """Without a network: two files and a chart."""
    write(side.folder, {"a.txt": b"a" * 10_000, "b.txt": b"b"})
    files = [{"path": str(side.folder / name)} for name in ("a.txt", "b.txt")]
    return side.spec(models=[], files=files, charts=[{"path": "charts/sovereign-crds"}])


CODES = {errno.ENOSPC: DiskFull, errno.EROFS: DiskFailed, errno.EIO: DiskFailed}


def fails_or_is_whole(side: Connected, spec: BundleSpec, at: int, code: int, **more: object) -> bool:
    """Creates on a disk that fails from the nth change on; whether it failed, as it should."""
    try:
        with BadDisk(side.folder, at, code):
            side.create(spec=spec, **more)
    except SovereignError as error:
        assert type(error) is CODES[code], f"change {at}: {error}"
        assert os.strerror(code) in str(error)
        assert not os.path.lexists(side.out), f"change {at}"
        return True
    verify(open_bundle(side.out), [], 1, Progress())
    return False


@pytest.mark.parametrize("parts", [None, 16 * 1024])
def test_a_disk_that_fails_at_any_change_leaves_nothing_and_the_next_run_succeeds(
    side: Connected, parts: int | None
) -> None:
    spec = small_spec(side)
    with BadDisk(side.folder, 0, errno.EIO) as counted:
        whole = side.create(spec=spec, part_size=parts)
    shutil.rmtree(side.out)
    failures = 0
    for at in range(1, counted.changes + 1):
        code = list(CODES)[at % len(CODES)]
        failures += fails_or_is_whole(side, spec, at, code, part_size=parts)
        if not side.out.exists():
            again = side.create(spec=spec, part_size=parts)
            assert again.index_digest == whole.index_digest, f"change {at}"
        shutil.rmtree(side.out)
        shutil.rmtree(side.unfinished, ignore_errors=True)
    # The last changes are after the name is there: a sync, and the removal of the empty folder.
    assert failures >= counted.changes - 4


@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
def test_a_disk_that_fails_while_a_model_comes_costs_no_byte_twice(side: Connected, code: int) -> None:
    side.hub.requests.clear()
    with BadDisk(side.folder / "bundle.unfinished", 0, code) as counted:
        whole = side.create()
    shutil.rmtree(side.out)
    for at in (2, counted.changes // 2, counted.changes - 12):
        assert fails_or_is_whole(side, side.spec(), at, code)
        kept = {path.name for path in side.unfinished.glob("bundle/blobs/sha256/[0-9a-f]*")}
        side.hub.requests.clear()
        assert side.create().index_digest == whole.index_digest
        asked = " ".join(side.downloads())
        assert not [name for name in kept if name in asked], "a blob that verifies was fetched again"
        shutil.rmtree(side.out)


def test_a_bundle_that_cannot_fit_is_refused_before_any_byte(
    side: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs
    few = 1_150_000  # of which a megabyte is left spare

    def statvfs(path: Path) -> os.statvfs_result:
        found = list(real(path))
        found[1], found[4] = 1, few
        return os.statvfs_result(found)

    monkeypatch.setattr(disk.os, "statvfs", statvfs)
    with pytest.raises(DiskFull, match=r"Expected \d+ free bytes"):
        side.create()
    assert not side.downloads()
    # One model fits: what two share is counted once.
    few = 1_300_000
    side.create()


SCRIPT = """
import sys
from pathlib import Path
from sovereign_airgap.access import Access
from sovereign_airgap.bundle.create import CreateOptions, create
from sovereign_airgap.bundle.spec import load_spec
from sovereign_airgap.hub_stream import HubStream
from sovereign_airgap.progress import Progress
from tests.unit.faults.corrupter import DyingProcess

spec, out, endpoint, at, parts = sys.argv[1:]
options = CreateOptions(access=Access(plain_http=True), endpoint=endpoint, part_size=int(parts) or None)
with DyingProcess(Path(out).parent, int(at), 0) as dying:
    create(load_spec(Path(spec)), Path(out), options, Progress())
print(dying.changes)
"""


def dies(side: Connected, at: int, parts: int = 0) -> int:
    """Creates in a process that ends as by kill -9 at its nth change of the disk; returns its exit code, or
    for 0 the number of changes."""
    spec = side.folder / "spec.yaml"
    models = [{"source": side.source(repo)} for repo in (REPO, "Org/Tiny-Twin")]
    spec.write_text(json.dumps({"name": "site", "models": models}))
    arguments = [str(spec), str(side.out), side.hub.endpoint, str(at), str(parts)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if at == 0:
        assert done.returncode == 0, done.stderr
        return int(done.stdout)
    return done.returncode


@pytest.mark.parametrize("parts", [0, 32 * 1024])
def test_a_process_that_is_killed_leaves_what_the_next_run_goes_on_with(side: Connected, parts: int) -> None:
    changes = dies(side, 0, parts)
    whole = open_bundle(side.out)
    wanted = verify(whole, [], 1, Progress()).index_digest
    shutil.rmtree(side.out)
    points = (
        [changes * step // 5 for step in range(1, 5)]
        if parts
        else [2, changes // 3, changes - 15, changes - 3]
    )
    for at in points:
        assert dies(side, at, parts) == 137, f"change {at} of {changes}"
        assert not side.out.exists(), f"change {at} of {changes}"
        kept = {path.name for path in side.unfinished.glob("bundle/blobs/sha256/[0-9a-f]*")}
        side.hub.requests.clear()
        result = side.create(part_size=parts or None)
        assert result.index_digest == wanted
        verify(open_bundle(result.path), [], 1, Progress())
        asked = " ".join(side.downloads())
        assert not [name for name in kept if name in asked], "a blob that verifies was fetched again"
        assert not side.unfinished.exists()
        shutil.rmtree(side.out)


def left_half_way(side: Connected) -> CreateResult:
    """What a run leaves that ends just before its rename."""
    result = side.create()
    side.unfinished.mkdir()
    side.out.rename(side.unfinished / "bundle")
    side.hub.requests.clear()
    return result


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "extended": extend,
    "zeroed": zero,
    "a link": symlink,
    "a hard link": hard_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_blob_that_went_bad_between_runs_is_fetched_again_and_no_other(
    side: Connected, models: dict[str, bytes], damage: str
) -> None:
    before = left_half_way(side)
    shard = digest_of(models[SHARED]).removeprefix("sha256:")
    DAMAGES[damage](side.unfinished / "bundle/blobs/sha256" / shard)
    assert side.create().index_digest == before.index_digest
    assert [shard in asked for asked in side.downloads()] == [True]
    Opened(side.out).require_whole()


def test_what_another_run_left_is_neither_believed_nor_carried(side: Connected) -> None:
    before = left_half_way(side)
    blobs = side.unfinished / "bundle/blobs/sha256"
    (blobs / ("0" * 64)).write_bytes(b"no such content")
    (blobs / digest_of(b"another run's").removeprefix("sha256:")).write_bytes(b"another run's")
    (blobs / ".sovereign-1234.partial").write_bytes(b"half")
    (side.unfinished / "bundle/signatures").mkdir()
    (side.unfinished / "bundle/signatures" / ("0" * 64 + ".dsse.json")).write_bytes(b"{}")
    result = side.create()
    assert result.index_digest == before.index_digest
    assert verify(Directory(side.out), [], 1, Progress()).blobs == before.blobs
    assert not side.downloads()


def test_cutting_another_bundle_into_parts_is_not_gone_on_with(
    side: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiskFull), BadDisk(side.unfinished / "parts", 3, errno.ENOSPC):
        side.create(part_size=16 * 1024)
    assert (side.unfinished / "frozen").exists()
    for change in ({"part_size": None}, {"part_size": 8192}, {"part_size": 16 * 1024, "platform": "all"}):
        with pytest.raises(BundleExists, match="cut into parts"):
            side.create(**change)
    side.create(part_size=16 * 1024)
    verify(open_bundle(side.out), [], 1, Progress())


def test_a_hub_that_serves_other_bytes_ends_the_run_and_they_are_not_kept(
    side: Connected, models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HubStream.readinto

    def flipped(stream: HubStream, view: memoryview) -> int:
        count = real(stream, view)
        view[count - 1] ^= 1
        return count

    with monkeypatch.context() as patched, pytest.raises(DigestMismatch, match="as listed by the hub"):
        patched.setattr(HubStream, "readinto", flipped)
        side.create()
    assert not side.out.exists()
    Opened(side.unfinished / "bundle").require_whole()
    assert digest_of(models[SHARED]) not in Opened(side.unfinished / "bundle").blobs
    side.create()
    Opened(side.out).require_whole()
