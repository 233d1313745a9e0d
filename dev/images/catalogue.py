# SPDX-License-Identifier: Apache-2.0
"""What each image is made of, and the hash over it: an equal hash means that nothing need be built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.images.errors import BuildFailed

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("operator/sovereign_operator", "airgap/sovereign_airgap", "serving/sovereign_serving")
WHEEL_INPUTS = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
CPU_PLUGIN = "dev/cpu_expert_parallel"
SINGLE_RANK = "dev/single_rank.py"
# No byte code, no editor files: only these end up in a wheel.
IGNORED_FOLDERS = frozenset({"__pycache__", "build", "dist"})

DEBIAN_PACKAGES = ("python3", "libnuma1", "libgomp1", "ca-certificates")
# KubeRay's probes run them.
PROBE_TOOLS = ("bash", "grep", "wget")
# Triton compiles its launchers in the pods that have GPUs.
COMPILER = ("gcc", "libc6-dev", "python3-dev")
# NCCL looks for them at run time and goes through TCP without a word where they are missing.
RDMA = ("libibverbs1", "ibverbs-providers")


@dataclass(frozen=True)
class Image:
    """`folder` is below images/; `parent` gives the build argument BASE.

    `lock` names the extra to install, `tools` the distribution's packages beside Python; `diet` drops what
    only GPUs need. The rest fills the build context.
    """

    name: str
    folder: str
    parent: str | None = None
    lock: str | None = None
    wheels: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    diet: bool = False
    binary: str | None = None
    debian: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def build_arguments(self) -> tuple[tuple[str, str], ...]:
        given = {"EXTRA": self.lock or "", "TOOLS": " ".join(self.tools), "DIET": "1" if self.diet else ""}
        return tuple((name, value) for name, value in given.items() if value)

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the repository that decide what the image contains."""
        paths = [f"images/{self.folder}"]
        if self.lock or self.wheels:
            paths.append("images/install.sh")
        if self.lock:
            paths.append(f"locks/{self.lock}.txt")
        for wheel in self.wheels:
            paths += WHEEL_INPUTS if wheel == "." else [wheel]
        return (*paths, *self.files)


_IMAGES = (
    Image("rootfs", "rootfs", debian=DEBIAN_PACKAGES),
    Image("rootfs-serving", "rootfs", debian=(*DEBIAN_PACKAGES, *PROBE_TOOLS)),
    Image("rootfs-compiler", "rootfs", debian=(*DEBIAN_PACKAGES, *PROBE_TOOLS, *COMPILER, *RDMA)),
    Image("base", "base", parent="rootfs"),
    Image("base-serving", "base", parent="rootfs-serving"),
    Image("base-compiler", "base", parent="rootfs-compiler"),
    Image("operator-deps", "deps", parent="base", lock="operator"),
    Image("airgap-deps", "deps", parent="base", lock="airgap"),
    Image(
        "serving-deps",
        "deps",
        parent="base-compiler",
        lock="serving",
        tools=(*PROBE_TOOLS, *COMPILER, *RDMA),
    ),
    Image(
        "serving-cpu-deps", "deps", parent="base-serving", lock="serving-cpu", tools=PROBE_TOOLS, diet=True
    ),
    Image("operator", "operator", parent="operator-deps", wheels=(".",)),
    Image("airgap", "airgap", parent="airgap-deps", wheels=(".",)),
    Image("serving", "serving", parent="serving-deps", wheels=(".",)),
    Image(
        "serving-cpu",
        "serving-cpu",
        parent="serving-cpu-deps",
        wheels=(".", CPU_PLUGIN),
        files=(SINGLE_RANK,),
    ),
    Image(
        "demo-hub",
        "demo-hub",
        parent="base",
        files=("dev/__init__.py", "dev/hub", "dev/tiny_moe.py"),
    ),
    Image("registry", "registry", binary="registry"),
    Image("coredns", "coredns", binary="coredns"),
    Image("pause", "pause", binary="pause"),
)
CATALOGUE: Mapping[str, Image] = {image.name: image for image in _IMAGES}


def lineage(name: str) -> tuple[Image, ...]:
    """The image and its parents, the oldest first."""
    image = CATALOGUE[name]
    return (*(lineage(image.parent) if image.parent else ()), image)


def files_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        f for f in path.rglob("*") if f.is_file() and not IGNORED_FOLDERS & set(f.relative_to(path).parts)
    )


def inputs_hash(image: Image, *, parent: str, machine: str, binary: Path | None, root: Path = ROOT) -> str:
    """sha256 over everything that goes into the image.

    `parent` is the parent's hash, `machine` names the distribution for images made from its packages. A
    missing source is an error: an image that lacks a part would be cached as if it were whole.
    """
    digest = hashlib.sha256()

    def add(label: str, content: bytes) -> None:
        digest.update(f"{label}\0{len(content)}\0".encode())
        digest.update(content)

    add("image", repr((image.folder, image.debian)).encode())
    for name, value in image.build_arguments:
        add(name, value.encode())
    add("parent", parent.encode())
    if image.debian:
        add("machine", machine.encode())
    for source in image.sources:
        files = files_below(root / source)
        if not files:
            raise BuildFailed(f"image {image.name} is made of {source}, but there is nothing")
        for file in files:
            add(str(file.relative_to(root)), file.read_bytes())
    if binary is not None:
        with binary.open("rb") as stream:
            add("binary", hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
