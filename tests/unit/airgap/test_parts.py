# SPDX-License-Identifier: Apache-2.0
"""Bundles in parts: one deterministic archive, read without joining it, extracted by any tar."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.bundle import archive
from sovereign_airgap.bundle.layout import Directory, blob_path
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.parts import Parts, PartsList, part_name
from sovereign_airgap.bundle.split import split
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import BundleDefective
from tests.unit.airgap.bundles import a_bundle, index_digest

PART_SIZE = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_bundle(tmp_path_factory.mktemp("bundle"), width=64)


@pytest.fixture(scope="module")
def parts(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(split(bundle, tmp_path_factory.mktemp("parts"), PART_SIZE).path)


def joined(parts: Parts) -> bytes:
    return b"".join((parts.folder / part.name).read_bytes() for part in parts.list.parts)


def test_parts_have_equal_sizes_and_their_digests_are_in_the_list(parts: Parts, bundle: Path) -> None:
    assert len(parts.list.parts) > 2
    assert {part.size for part in parts.list.parts[:-1]} == {PART_SIZE}
    for number, part in enumerate(parts.list.parts, 1):
        assert part.name == f"site-1.part-{number:05d}"
        assert Digest.of((parts.folder / part.name).read_bytes()) == part.digest
    assert parts.list.index == index_digest(bundle)
    assert PartsList.parse(parts.list.encode()) == parts.list


def test_cat_and_tar_give_the_bundle_back(parts: Parts, bundle: Path, tmp_path: Path) -> None:
    command = 'cat "$1".part-* | tar -x -C "$2"'
    name = str(parts.folder / parts.list.name)
    subprocess.run(["sh", "-c", command, "sh", name, str(tmp_path)], check=True)

    def content(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert content(tmp_path) == content(bundle)


def test_the_archive_says_nothing_of_who_made_it_and_when(parts: Parts) -> None:
    with tarfile.open(fileobj=io.BytesIO(joined(parts))) as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert (member.uname, member.gname) == ("", "")


def test_parts_are_read_as_the_directory_is(parts: Parts, bundle: Path) -> None:
    directory = Directory(bundle)
    assert list(parts.entries()) == list(directory.entries())
    for entry in directory.entries():
        assert parts.size(entry.path) == entry.size
        with parts.open(entry.path) as one, directory.open(entry.path) as other:
            assert one.read() == other.read()


@given(data=st.data())
def test_a_read_from_any_offset_crosses_parts(parts: Parts, bundle: Path, data: st.DataObject) -> None:
    entry = max(parts.entries(), key=lambda entry: entry.size)
    assert len(parts.parts_of(entry.path)) > 1
    start = data.draw(st.integers(0, entry.size + 5))
    count = data.draw(st.integers(0, entry.size + 5))
    with parts.open(entry.path) as stream:
        stream.seek(start)
        assert stream.read(count) == (bundle / entry.path).read_bytes()[start : start + count]


def test_what_is_not_in_the_parts_cannot_be_opened(parts: Parts) -> None:
    absent = blob_path(Digest.of(b"absent"))
    assert parts.size(absent) is None
    for path in (absent, "../index.json", "blobs"):
        with pytest.raises(BundleDefective):
            parts.open(path)


# -- opening ------------------------------------------------------------------------------------------------


def test_a_bundle_is_opened_as_directory_as_list_and_as_folder_of_parts(parts: Parts, bundle: Path) -> None:
    assert isinstance(open_bundle(bundle), Directory)
    assert isinstance(open_bundle(parts.folder), Parts)
    assert isinstance(open_bundle(Path(parts.describe)), Parts)


def test_a_folder_with_parts_of_two_bundles_is_not_guessed_about(parts: Parts, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.parts.json").write_bytes(parts.list.encode())
    with pytest.raises(BundleDefective, match=r"found 2: name one, as in .*one\.parts\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["", "site-1.part-00001", "absent", "absent.parts.json"])
def test_what_is_no_bundle_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleDefective, match="Expected"):
        open_bundle(tmp_path / name)


# -- the archive --------------------------------------------------------------------------------------------

PATHS = ["index.json", blob_path(Digest.of(b"x")), "signatures/" + "a" * 64 + ".dsse.json"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 2**43 + 7])
def test_a_header_is_read_by_other_tars_and_by_ours(path: str, size: int) -> None:
    blocks = archive.header(path, size)
    found = tarfile.TarFile(fileobj=io.BytesIO(blocks + archive.END), mode="r").next()
    assert found is not None and (found.name, found.size) == (path, size)

    end = archive.Member(path, size, 0, len(blocks)).end

    def read(at: int, count: int) -> bytes:
        return blocks[at : at + count].ljust(count, b"\0") if at < end + len(archive.END) else b""

    assert [(each.path, each.size) for each in archive.walk(read, end + len(archive.END))] == [(path, size)]


def a_tar(*members: tuple[str, bytes]) -> bytes:
    content = b""
    for path, data in members:
        content += archive.header(path, len(data)) + data + bytes(-len(data) % 512)
    return content + archive.END


def walked(content: bytes) -> list[archive.Member]:
    return list(archive.walk(lambda at, count: content[at : at + count], len(content)))


LINK = tarfile.TarInfo("index.json")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc/passwd"
FIFO = tarfile.TarInfo("index.json")
FIFO.type = tarfile.FIFOTYPE
HARD = tarfile.TarInfo("oci-layout")
HARD.type, HARD.linkname = tarfile.LNKTYPE, "index.json"
FOREIGN = tarfile.TarInfo("index.json")


@pytest.mark.parametrize(
    ("content", "defect"),
    [
        (LINK.tobuf() + archive.END, "a symbolic link"),
        (FIFO.tobuf() + archive.END, "a pipe"),
        (HARD.tobuf() + archive.END, "a hard link"),
        (a_tar(("../index.json", b"x")), "a file that does not belong there"),
        (a_tar(("/etc/passwd", b"x")), "a file that does not belong there"),
        (a_tar(("surplus.txt", b"x" * 600)), "a file that does not belong there"),
    ],
)
def test_what_may_not_be_in_the_archive_comes_with_its_defect(content: bytes, defect: str) -> None:
    assert [member.defect for member in walked(content)] == [defect]


GOOD = a_tar(("CONTENTS.txt", b"a"), ("index.json", b"b" * 600))


def test_the_archive_of_format_1_is_these_bytes_for_ever() -> None:
    headers = b"".join(archive.header(path, size) for path in PATHS for size in (0, 600, 2**43 + 7))
    assert str(Digest.of(GOOD)) == "sha256:227943daddf1c822c435dbd9a6eb0d5fbc1750b385f6df70a77123a5f6eb6d6c"
    assert (
        str(Digest.of(headers)) == "sha256:c3e475e66b5375be2914319d51379091b86ce34237a9d62130701a5d35a4a3d1"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        archive.END[:-1],
        archive.END + b"x",
        GOOD[:-1],
        GOOD + bytes(512),
        GOOD[:-1024] + b"x" + GOOD[-1023:],
        a_tar(("index.json", b""), ("index.json", b"")),
        a_tar(("index.json", b""), ("CONTENTS.txt", b"")),
        FOREIGN.tobuf(tarfile.GNU_FORMAT) + archive.END,
        archive.header("index.json", 1 << 60) + archive.END,
        b"\xff" * 2048,
    ],
)
def test_an_archive_that_split_does_not_write_is_refused(content: bytes) -> None:
    with pytest.raises(archive.ArchiveBroken):
        walked(content)


@given(at=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_outside_of_contents_is_always_noticed(at: int, bit: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= 1 << bit
    in_content = 512 <= at < 513 or 1536 <= at < 1536 + 600
    try:
        found = [(member.path, member.defect) for member in walked(bytes(changed))]
    except archive.ArchiveBroken:
        assert not in_content
    else:
        assert in_content and found == [("CONTENTS.txt", None), ("index.json", None)]


@given(st.binary(max_size=2048))
def test_any_bytes_are_no_archive(content: bytes) -> None:
    with pytest.raises(archive.ArchiveBroken):
        walked(content)


# -- the list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"format":1', b'"format":1,"format":1'),
        (b'"name":"site-1"', b'"name":"../site-1"'),
        (b'"name":"site-1"', b'"name":"other-1"'),
        (b"site-1.part-00001", b"../../etc/passwd"),
        (b"part-00001", b"part-00002"),
        (b'"index":"sha256:', b'"index":"sha512:'),
        (b'"partSize":10000', b'"partSize":-1'),
        (b'"partSize":10000', b'"partSize":20000'),
        (b'"partSize":10000', b'"partSize":1000000000000000000000'),
        (b'"size":10000', b'"size":0'),
        (b'"size":10000', b'"size":true'),
        (b'"parts":[', b'"parts":[{},'),
        (b'"parts":[', b'"surplus":['),
        (b"{", b"["),
    ],
)
def test_a_list_that_contradicts_itself_is_refused(parts: Parts, old: bytes, new: bytes) -> None:
    content = parts.list.encode()
    assert old in content
    with pytest.raises(BundleDefective, match="Expected a list of parts with"):
        PartsList.parse(content.replace(old, new, 1))


def test_a_list_too_large_to_read_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "site-1.parts.json"
    with path.open("wb") as file:
        file.truncate(5 * 1024 * 1024)
    with pytest.raises(BundleDefective, match="at most"):
        Parts(path)


def test_part_names_sort_as_their_numbers_do() -> None:
    names = [part_name("a", number) for number in (1, 2, 10, 9999, 10_000)]
    assert names == sorted(names)
