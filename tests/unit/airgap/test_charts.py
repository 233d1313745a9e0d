# SPDX-License-Identifier: Apache-2.0
"""Charts of a bundle: packed the same everywhere, readable by Helm, refused with a sentence."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from sovereign_airgap.bundle.charts import CONFIG_TYPE, CONTENT_TYPE, _stored_gzip, pack
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.errors import DiskFailed, InvalidSpec, UnsafeFileName
from tests.unit.airgap.creations import Connected, Opened, digest_of
from tests.unit.airgap.models import write

CHART = b"apiVersion: v2\nname: my-chart\nversion: 1.2.3+build\ndescription: A chart.\n"
FILES = {"Chart.yaml": CHART, "templates/x.yaml": b"kind: X\n", "values.yaml": b"{}\n"}


def a_chart(folder: Path, **more: bytes) -> Path:
    write(folder, {**FILES, **more})
    return folder


def names_in(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        return members.getnames()


def test_a_folder_is_packed_the_same_whatever_its_times_and_rights(tmp_path: Path) -> None:
    one, other = a_chart(tmp_path / "one"), a_chart(tmp_path / "other")
    os.utime(other / "values.yaml", (1, 1))
    (other / "values.yaml").chmod(0o600)
    assert pack(one) == pack(other)
    assert names_in(pack(one).archive) == [
        "my-chart/Chart.yaml", "my-chart/templates/x.yaml", "my-chart/values.yaml",
    ]  # fmt: skip
    # The very bytes, so that a release that packs differently shows here.
    golden = "sha256:4aedd2ba8d7c5cbf12cfb72670645770b8b4c989094dd6d63f25bce7471cfa5f"
    assert digest_of(pack(one).archive) == golden


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 200_000])
def test_an_archive_of_any_size_is_a_gzip(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    assert gzip.decompress(_stored_gzip(content[:size])) == content[:size]


def test_an_archive_is_carried_as_it_is(tmp_path: Path) -> None:
    packed = pack(a_chart(tmp_path / "chart"))
    archive = tmp_path / "my-chart-1.2.3.tgz"
    archive.write_bytes(gzip.compress(gzip.decompress(packed.archive), 9, mtime=7))
    found = pack(archive)
    assert found.archive == archive.read_bytes()
    assert (found.name, found.version, found.tag) == ("my-chart", "1.2.3+build", "1.2.3_build")


def test_what_helmignore_names_stays_behind(tmp_path: Path) -> None:
    rules = b"# comment\n*.bak\nci/\n/docs/*.md\n!docs/keep.md\n"
    more = {
        ".helmignore": rules, "x.bak": b"", "ci/values.yaml": b"", "docs/a.md": b"", "docs/keep.md": b"",
        "templates/.hidden": b"",
    }  # fmt: skip
    names = names_in(pack(a_chart(tmp_path, **more)).archive)
    assert {name.removeprefix("my-chart/") for name in names} == {*FILES, ".helmignore", "docs/keep.md"}


def test_a_chart_in_a_bundle_has_the_form_that_helm_reads(side: Connected, tmp_path: Path) -> None:
    chart = a_chart(tmp_path / "chart")
    opened = Opened(side.create(spec=side.spec(models=[], charts=[{"path": str(chart)}])).path)
    root = opened.root(Kind.CHART, "charts/my-chart:1.2.3_build")
    manifest = opened.json(root.descriptor)
    assert manifest["config"]["mediaType"] == CONFIG_TYPE  # type: ignore[index,call-overload]
    (layer,) = manifest["layers"]  # type: ignore[misc]
    assert layer["mediaType"] == CONTENT_TYPE  # type: ignore[index,call-overload]
    assert layer["digest"] == digest_of(pack(chart).archive)  # type: ignore[index,call-overload]


def refused(path: Path, told: str) -> None:
    with pytest.raises(InvalidSpec, match=told) as error:
        pack(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("chart", "told"),
    [
        (b"", "to be YAML, found 0 documents"),
        (b"name: x\nname: y", "twice"),
        (b"name: x", "a version as in"),
        (b"name: x\nversion: 1.0", "a version as in"),
        (b"name: x\nversion: ../1", "a version as in"),
        (b"version: 1.2.3", "a name in lower case"),
        (b"name: X\nversion: 1.2.3", "a name in lower case"),
        (b"name: a/b\nversion: 1.2.3", "a name in lower case"),
        (b"name: ..\nversion: 1.2.3", "a name in lower case"),
    ],
)
def test_a_chart_that_is_none_is_told_in_one_sentence(tmp_path: Path, chart: bytes, told: str) -> None:
    refused(a_chart(tmp_path, **{"Chart.yaml": chart}), told)


def test_a_folder_that_is_no_chart_or_hides_something_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "none", {"values.yaml": b""})
    refused(tmp_path / "none", "found no Chart.yaml")
    with pytest.raises(DiskFailed, match="No such file"):
        pack(tmp_path / "nowhere")
    linked = a_chart(tmp_path / "linked")
    (linked / "templates/secret").symlink_to("/etc/passwd")
    refused(linked, "a link or a device")
    twins = a_chart(tmp_path / "twins", **{"VALUES.yaml": b""})
    with pytest.raises(UnsafeFileName):
        pack(twins)
    large = a_chart(tmp_path / "large")
    with (large / "large").open("wb") as file:
        file.truncate(21 * 1024 * 1024)
    refused(large, "at most 20971520 bytes")


@pytest.mark.parametrize(
    "content",
    # A gzip header holds the time: without a fixed one, each worker would name the tests differently.
    [b"", b"no archive", gzip.compress(b"no tar", mtime=0), gzip.compress(b"", mtime=0)[:-9]],
    ids=["empty", "no archive", "no tar", "cut gzip"],
)
def test_an_archive_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tgz").write_bytes(content)
    refused(tmp_path / "x.tgz", "Expected")


def test_an_archive_that_explodes_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("x/bomb")
        member.size = 101 * 1024 * 1024
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    refused(tmp_path / "x.tgz", "104857600 bytes in it")


def a_header(size: int) -> bytes:
    """That of a pax header of `size` bytes, which names the member after it."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, size
    return header.tobuf(tarfile.USTAR_FORMAT)


def test_a_header_that_explodes_is_not_read(tmp_path: Path) -> None:
    size = 300 * 1024 * 1024
    with gzip.open(tmp_path / "x.tgz", "wb", compresslevel=1) as archive:
        archive.write(a_header(size))
        for _ in range(size // 2**20):
            archive.write(bytes(2**20))
    tracemalloc.start()
    try:
        refused(tmp_path / "x.tgz", "104857600 bytes in it")
        assert tracemalloc.get_traced_memory()[1] < 250 * 2**20
    finally:
        tracemalloc.stop()


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(gzip.compress((a_header(512) + bytes(512)) * 5_000, mtime=0))
    refused(tmp_path / "x.tgz", "to be a chart's archive")


def test_an_archive_may_be_several_gzips_and_padded(tmp_path: Path) -> None:
    content = gzip.decompress(pack(a_chart(tmp_path / "chart")).archive)
    pieces = (content[:100], content[100:2000], content[2000:])
    archive = b"".join(gzip.compress(piece, mtime=0) for piece in pieces) + bytes(512)
    (tmp_path / "x.tgz").write_bytes(archive)
    assert pack(tmp_path / "x.tgz").name == "my-chart"


@pytest.mark.parametrize("size", [0, 1])
def test_an_archive_of_many_gzips_takes_no_longer_for_it(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.tgz").write_bytes(gzip.compress(bytes(size), mtime=0) * 100_000)
    begun = time.process_time()
    refused(tmp_path / "x.tgz", "Expected")
    assert time.process_time() - begun < 20
