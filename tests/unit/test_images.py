# SPDX-License-Identifier: Apache-2.0
"""What decides whether an image is built again, and where the machine that builds takes packages from."""

import re
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dev.images.build import build_and_push, registry_has
from dev.images.catalogue import CATALOGUE, ROOT, Image, inputs_hash, lineage
from dev.images.errors import BuildFailed
from dev.images.machine import (
    AptSource,
    NoMirror,
    certificates,
    choose_mirror,
    index_settings,
    mirror,
    parse_apt_sources,
    shell_exports,
)
from dev.images.rootfs import strip, write_tar

CONTAINERFILES = sorted((ROOT / "images").glob("*/Containerfile"))


def a_tree(root: Path) -> Image:
    for name, text in {
        "images/app/Containerfile": "FROM scratch",
        "images/install.sh": "#!/bin/sh",
        "locks/app.txt": "x==1",
        "src/a.py": "pass",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Image("app", "app", lock="app", wheels=("src",))


def hash_of(
    image: Image, root: Path, *, parent: str = "", machine: str = "", binary: Path | None = None
) -> str:
    return inputs_hash(image, parent=parent, machine=machine, binary=binary, root=root)


@pytest.mark.parametrize(
    "changed", ["images/app/Containerfile", "images/install.sh", "locks/app.txt", "src/a.py"]
)
def test_an_image_is_built_again_when_anything_it_is_made_of_changes(tmp_path: Path, changed: str) -> None:
    image = a_tree(tmp_path)
    before = hash_of(image, tmp_path)
    assert hash_of(image, tmp_path) == before
    (tmp_path / changed).write_text("changed")
    assert hash_of(image, tmp_path) != before


def test_an_image_is_built_again_when_its_parent_or_its_binary_changes(tmp_path: Path) -> None:
    image, binary = a_tree(tmp_path), tmp_path / "program"
    binary.write_bytes(b"1")
    before = hash_of(image, tmp_path, binary=binary)
    assert hash_of(image, tmp_path, parent="other", binary=binary) != before
    binary.write_bytes(b"2")
    assert hash_of(image, tmp_path, binary=binary) != before


def test_byte_code_and_other_files_do_not_matter(tmp_path: Path) -> None:
    image = a_tree(tmp_path)
    before = hash_of(image, tmp_path)
    (tmp_path / "src/__pycache__").mkdir()
    (tmp_path / "src/__pycache__/a.pyc").write_bytes(b"0")
    (tmp_path / "elsewhere.py").write_text("")
    assert hash_of(image, tmp_path) == before


def test_only_images_made_of_the_distributions_packages_depend_on_it(tmp_path: Path) -> None:
    image = a_tree(tmp_path)
    assert hash_of(image, tmp_path, machine="bookworm") == hash_of(image, tmp_path, machine="trixie")
    rootfs = Image("app", "app", debian=("python3",))
    assert hash_of(rootfs, tmp_path, machine="bookworm") != hash_of(rootfs, tmp_path, machine="trixie")


def test_a_missing_source_is_an_error_and_not_an_image_without_it(tmp_path: Path) -> None:
    image = a_tree(tmp_path)
    (tmp_path / "src/a.py").unlink()
    with pytest.raises(BuildFailed, match="made of src"):
        hash_of(image, tmp_path)


@pytest.mark.parametrize("image", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_everything_an_image_is_made_of_is_in_the_repository(image: Image) -> None:
    assert [source for source in image.sources if not (ROOT / source).exists()] == []
    assert lineage(image.name)[0].parent is None


def test_a_changed_source_file_leaves_the_heavy_layer_alone() -> None:
    heavy = [source for one in lineage("serving-cpu-deps") for source in one.sources]
    assert heavy == [
        "images/rootfs",
        "images/base",
        "images/deps",
        "images/install.sh",
        "locks/serving-cpu.txt",
    ]


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: str(path.parent.name))
def test_containerfiles_name_no_machine_and_end_as_an_ordinary_user(path: Path) -> None:
    text = path.read_text()
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert path.parent.name == "rootfs" or users[-1] == "1000:1000"
    assert "http" not in text.replace("docker.io", "")
    for image in re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE):
        assert re.search(r"@sha256:[0-9a-f]{64}$", image)


def test_the_serving_image_names_its_tools_and_leaves_gpus_to_the_device_plugin() -> None:
    text = (ROOT / "images/serving/Containerfile").read_text()
    tools = CATALOGUE["serving-deps"].tools
    assert {"libibverbs1", "ibverbs-providers"} <= set(tools)  # NCCL's way to RDMA
    assert set(tools) <= set(CATALOGUE["rootfs-compiler"].debian)
    assert f'TOOLS="{" ".join(tools)}"' in text
    assert not re.search(r"^(ENV|ARG)?\s*NVIDIA_VISIBLE_DEVICES=", text, re.MULTILINE)


DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main
Enabled: no
"""


def test_both_formats_of_apt_sources_are_read() -> None:
    debian = AptSource(
        "http://mirror.example/debian",
        ("bookworm", "bookworm-updates"),
        ("main",),
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    )
    assert list(parse_apt_sources(DEB822, deb822=True)) == [debian]
    lines = (
        "# deb http://mirror.example/no bookworm main\n"
        "deb-src http://mirror.example/src bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # here\n"
    )
    assert list(parse_apt_sources(lines, deb822=False)) == [
        AptSource("http://mirror.example/debian", ("bookworm",), ("main", "contrib"), "/k.gpg")
    ]


def test_the_distributions_archive_is_preferred_to_a_third_party_with_the_same_suite() -> None:
    vendor = AptSource("http://vendor.example", ("bookworm",), ("main",), "/vendor.gpg")
    plain = AptSource("http://plain.example", ("bookworm",), ("main",))
    own = AptSource(
        "http://own.example", ("bookworm",), ("main",), "/usr/share/keyrings/debian-archive-keyring.gpg"
    )
    assert choose_mirror([vendor, plain, own], "bookworm") == own
    assert choose_mirror([vendor, plain], "bookworm") == plain
    assert choose_mirror([vendor], "bookworm") == vendor
    with pytest.raises(NoMirror, match="trixie"):
        choose_mirror([own], "trixie")


def test_a_mirror_list_in_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/apt/mirrors").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME="Debian"\nVERSION_CODENAME=bookworm\n')
    (tmp_path / "etc/apt/mirrors/debian.list").write_text("https://mirror.example/debian\n")
    (tmp_path / "etc/apt/sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: bookworm\nComponents: main\n"
    )
    suite, source = mirror(tmp_path)
    assert (suite, source.uri) == ("bookworm", "https://mirror.example/debian")


def test_pips_settings_become_uvs_and_uvs_own_win() -> None:
    listed = (
        "global.index-url='https://index.example/simple'\n"
        "install.trusted-host='index.example'\n"
        ":env:.default-timeout='180'\n"
        "freeze.timeout='10'\n"
        "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'\n"
    )
    assert index_settings(listed, {}) == {
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_HTTP_TIMEOUT": "180",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_INSECURE_HOST": "index.example",
    }
    assert index_settings(listed, {"UV_DEFAULT_INDEX": "https://own.example"})["UV_DEFAULT_INDEX"] == (
        "https://own.example"
    )


def test_settings_are_quoted_for_the_shell_that_reads_them() -> None:
    assert (
        shell_exports({"A": "x y", "B": "$(touch /tmp/x)"}) == "export A='x y'\nexport B='$(touch /tmp/x)'\n"
    )


def test_certificates_are_taken_only_where_the_file_exists(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    assert certificates({"SSL_CERT_FILE": str(bundle)}) is None
    bundle.write_text("pem")
    assert certificates({"SSL_CERT_FILE": "/nowhere", "PIP_CERT": str(bundle)}) == bundle


def test_a_root_file_system_keeps_nothing_of_the_machine(tmp_path: Path) -> None:
    target = tmp_path / "rootfs"
    for name in (
        "etc/apt/sources.list",
        "etc/resolv.conf",
        "var/log/x.log",
        "usr/share/doc/a/copyright",
        "tmp/x",
        "bin/sh",
    ):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(name)
    for name in ("dev", "proc", "sys", "run"):
        (target / name).mkdir()
    strip(target)
    write_tar(target, tmp_path / "rootfs.tar")
    with tarfile.open(tmp_path / "rootfs.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members if m.isfile()] == ["bin/sh"]
    assert {m.mtime for m in members} == {0}
    assert [m.name for m in members] == sorted(m.name for m in members)


class Registry(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        statuses = {"/v2/app/manifests/sha256:here": 200, "/v2/app/manifests/sha256:broken": 500}
        self.send_response(statuses.get(self.path, 404))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_registry_is_asked_for_the_digest_before_anything_is_pushed() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        try:
            assert registry_has(address, "app", "sha256:here")
            assert not registry_has(address, "app", "sha256:gone")
            with pytest.raises(BuildFailed, match="500"):
                registry_has(address, "app", "sha256:broken")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(BuildFailed, match="is the cluster up"):
        registry_has(address, "app", "sha256:here")


def test_an_unknown_image_is_named_with_those_there_are() -> None:
    with pytest.raises(BuildFailed, match=r"no such image: nonsense; there are .*operator"):
        build_and_push(["operator", "nonsense"], "127.0.0.1:1")
