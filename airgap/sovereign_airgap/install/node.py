# SPDX-License-Identifier: Apache-2.0
"""What one node gets: images in containerd, and where containerd finds the registry's one name.

Neither the kubelet nor containerd asks the cluster's DNS, so the name of the Service says nothing to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sovereign_airgap.bundle.layout import BundleReader
from sovereign_airgap.disk import HalfWritten, explained, sync_folder
from sovereign_airgap.install.archive import archive
from sovereign_airgap.install.platform import NodeImage
from sovereign_airgap.install.programs import Programs

_CTR = ("--namespace", "k8s.io", "images")
# The kubelet collects images that no pod uses; of these nobody could bring one back.
_PINNED = "io.cri-containerd.pinned=pinned"
_CA = "ca.crt"
_CA_BYTES = 1024 * 1024
# A large image is unpacked after its last byte was sent.
_UNPACK_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Node:
    """This machine's containerd; `certs` is the folder that its `config_path` names."""

    programs: Programs
    certs: Path

    def missing(self, images: tuple[NodeImage, ...]) -> tuple[NodeImage, ...]:
        """Those that containerd does not have under all their names and with this content."""
        rows = [line.split() for line in self.programs.run("ctr", *_CTR, "list").splitlines()[1:]]
        there = {(row[0], row[2]) for row in rows if len(row) > 2}
        return tuple(
            image
            for image in images
            if not all((name, str(image.root.descriptor.digest)) in there for name in image.names)
        )

    def take(self, reader: BundleReader, image: NodeImage) -> None:
        """Streams an image into containerd, which unpacks it, and keeps it from being collected."""
        stream = archive(reader, image.root, image.names)
        self.programs.feed("ctr", *_CTR, "import", "-", stdin=stream, seconds=_UNPACK_SECONDS)
        for name in image.names:
            self.programs.run("ctr", *_CTR, "label", name, _PINNED)

    def write_hosts(self, registry: str, address: str, ca: Path | None) -> tuple[Path, ...]:
        """Tells containerd where the registry is; returns the files that were not so before."""
        folder = self.certs / registry
        files = {"hosts.toml": hosts_toml(address, ca is not None).encode()}
        if ca is not None:
            with explained(ca), ca.open("rb") as stream:
                files = {_CA: stream.read(_CA_BYTES), **files}
        changed = []
        for name, content in files.items():
            place = folder / name
            if not _is(place, content):
                with explained(place):
                    folder.mkdir(parents=True, exist_ok=True)
                _write(place, content)
                changed.append(place)
        return tuple(changed)


def hosts_toml(address: str, tls: bool) -> str:
    """containerd's host configuration: everything from one address, nothing is ever asked elsewhere."""
    server = f"{'https' if tls else 'http'}://{address}"
    lines = [f'server = "{server}"', "", f'[host."{server}"]', '  capabilities = ["pull", "resolve"]']
    return "\n".join([*lines, *([f'  ca = "{_CA}"'] if tls else []), ""])


def _is(place: Path, content: bytes) -> bool:
    try:
        return place.read_bytes() == content
    except OSError:
        return False


def _write(place: Path, content: bytes) -> None:
    file = HalfWritten(place, direct=False)
    try:
        file.write(content)
        file.publish()
    finally:
        file.close()
    with explained(place):
        sync_folder(place.parent)
