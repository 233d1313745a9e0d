# SPDX-License-Identifier: Apache-2.0
"""What of a bundle runs the platform itself: images for the node, charts and programs. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_airgap import oci
from sovereign_airgap.bundle.chart_values import OPERATOR_CHART, Values, values_of
from sovereign_airgap.bundle.image_names import Images, RelocatedImage
from sovereign_airgap.bundle.index import ORIGIN_NOTE, Index, Kind, Root
from sovereign_airgap.bundle.layout import BundleReader, read_blob
from sovereign_airgap.errors import BundleLacks, InvalidReference
from sovereign_airgap.manifest import MAX_MANIFEST_BYTES
from sovereign_airgap.reference import OciReference

# What must be on the node before the registry can serve anything: the chart's own images.
_ROLES = ("operator", "airgap", "registry", "coredns")
_PAUSE = "pause"
_CHART_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeImage:
    """An image for containerd, under every name that somebody calls it by."""

    root: Root
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """`registry` is the one name under which nodes and pods know the registry of the site."""

    reader: BundleReader
    index: Index
    registry: str

    def images(self) -> Images:
        return Images.of(
            RelocatedImage(
                self._origin(root),
                OciReference(self.registry, root.repository, digest=root.descriptor.digest),
            )
            for root in self.index.of_kind(Kind.IMAGE)
        )

    def node_images(self, sandbox: str | None) -> tuple[NodeImage, ...]:
        """The images of the operator's chart, and the pause image, also as `sandbox` where that is given.

        Raises BundleLacks where `sandbox` is given and there is no pause image.
        """
        found = []
        images = self.images()
        wanted = {str(image.now.digest) for role in _ROLES if (image := images.named(role)) is not None}
        for root in self.index.of_kind(Kind.IMAGE):
            is_pause = root.repository.rpartition("/")[2] in (_PAUSE, f"sovereign-{_PAUSE}")
            if is_pause or str(root.descriptor.digest) in wanted:
                names = self._names(root)
                found.append(NodeImage(root, (*names, sandbox) if sandbox and is_pause else names))
        if sandbox and not any(sandbox in image.names for image in found):
            raise BundleLacks(
                f"Expected a pause image for {sandbox} in the bundle, found none; create it with one, or "
                "leave --sandbox-image out."
            )
        return tuple(found)

    def chart(self, name: str) -> tuple[str, bytes]:
        """(version, archive) of the one chart of this name; raises BundleLacks."""
        roots = [root for root in self.index.of_kind(Kind.CHART) if root.repository.endswith(f"/{name}")]
        if len(roots) != 1:
            raise BundleLacks(
                f"Expected one chart {name} in the bundle, found {len(roots)}; create it with one."
            )
        root = roots[0]
        content = read_blob(
            self.reader, root.descriptor.digest, min(root.descriptor.size, MAX_MANIFEST_BYTES)
        )
        layers = oci.read(content, root.descriptor.media_type).children[1:]
        if not layers:
            raise BundleLacks(f"Expected an archive in the chart {root.name}, found none; create it again.")
        return root.tag, read_blob(self.reader, layers[0].digest, min(layers[0].size, _CHART_BYTES))

    def chart_values(self) -> Values:
        """The operator's chart with the images of this bundle, as `bundle load` writes them, too."""
        return values_of(OPERATOR_CHART, None, self.images())

    def program(self, name: str) -> Root | None:
        """The program that the bundle brings as `bin/<name>`."""
        return next((root for root in self.index.of_kind(Kind.FILE) if root.title == f"bin/{name}"), None)

    def _names(self, root: Root) -> tuple[str, ...]:
        """By digest, as the chart asks for it, by tag, and as it was called where it came from."""
        origin = self._origin(root)
        here = OciReference(self.registry, root.repository)
        names = [f"{here.name}@{root.descriptor.digest}", f"{here.name}:{root.tag}"]
        if origin.tag is not None:
            names.append(f"{origin.host}/{origin.repository}:{origin.tag}")
        return tuple(dict.fromkeys(names))

    def _origin(self, root: Root) -> OciReference:
        try:
            return OciReference.parse(dict(root.notes).get(ORIGIN_NOTE, ""))
        except InvalidReference:
            return OciReference(self.registry, root.repository, root.tag, root.descriptor.digest)
