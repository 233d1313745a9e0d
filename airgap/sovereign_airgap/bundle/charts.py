# SPDX-License-Identifier: Apache-2.0
"""Charts as Helm keeps them in registries: the archive that `helm package` would make, with its metadata.

A folder is packed here, the same bytes on every machine: sorted, without owners and times, and not deflated,
because two releases of zlib deflate differently.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sovereign_airgap import strict_yaml
from sovereign_airgap.bundle.chart_archive import MAX_FILES, NoChart, file_in
from sovereign_airgap.bundle.index import Kind, Root
from sovereign_airgap.bundle.items import ChartItem
from sovereign_airgap.bundle.source import Survey
from sovereign_airgap.bundle.unfinished import Unfinished
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import InvalidSpec
from sovereign_airgap.manifest import MANIFEST_TYPE, TITLE, Descriptor, canonical_json
from sovereign_airgap.names import require_safe_set
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import is_repository
from sovereign_airgap.strict_json import Json, NotStrict

CONFIG_TYPE = "application/vnd.cncf.helm.config.v1+json"
CONTENT_TYPE = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
PREFIX = "charts/"
MAX_CHART_BYTES = 20 * 1024 * 1024  # Helm itself reads charts into memory
_METADATA = "Chart.yaml"
_IGNORE = ".helmignore"
_STORED_BYTES = 65_535
_VERSION = re.compile(r"v?[0-9]+(\.[0-9]+){0,2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, packed. `metadata` is what Chart.yaml says."""

    name: str
    version: str
    metadata: dict[str, Json]
    archive: bytes

    @property
    def tag(self) -> str:
        return self.version.replace("+", "_")  # as Helm does: a tag cannot hold a plus


def pack(path: Path) -> Chart:
    """The chart at `path`, a folder or an archive; raises InvalidSpec, DiskFailed or UnsafeFileName."""
    with explained(path):
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    if is_folder:
        files = _files_below(path)
        return _chart(path, files.get(_METADATA), lambda name: _packed(name, files))
    archive = _read(path, MAX_CHART_BYTES)
    try:
        metadata = file_in(archive, _METADATA, MAX_CHART_BYTES)
    except NoChart as error:
        raise InvalidSpec(f"Expected {path} to be a chart's archive (tar+gzip), found {error}.") from error
    return _chart(path, metadata, lambda name: archive)


@dataclass(slots=True)
class ChartSource:
    """One chart of a spec."""

    path: Path
    progress: Progress
    _chart: Chart | None = None

    @property
    def describe(self) -> str:
        return str(self.path)

    def survey(self, to: Unfinished) -> Survey:
        self._chart = pack(self.path)
        name = f"{PREFIX}{self._chart.name}:{self._chart.tag}"
        return Survey((name,), 1, more=len(self._chart.archive))

    def carry(self, to: Unfinished) -> tuple[ChartItem, ...]:
        chart = self._chart
        assert chart is not None
        config = canonical_json(chart.metadata)
        to.put_blob(config)
        to.put_blob(chart.archive)
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": Descriptor.of(CONFIG_TYPE, config).as_json(),
                "layers": [Descriptor.of(CONTENT_TYPE, chart.archive).as_json()],
                "annotations": {TITLE: chart.name, "org.opencontainers.image.version": chart.version},
            }
        )
        to.put_document(manifest)
        self.progress.moved(len(chart.archive))
        self.progress.finished(chart.name)
        root = Root(Kind.CHART, Descriptor.of(MANIFEST_TYPE, manifest), PREFIX + chart.name, chart.tag)
        description = chart.metadata.get("description")
        told = description if isinstance(description, str) and description.isprintable() else ""
        return (ChartItem(root, chart.name, chart.version, told[:500], len(chart.archive)),)


def _chart(path: Path, metadata: bytes | None, archive: Callable[[str], bytes]) -> Chart:
    if metadata is None:
        raise InvalidSpec(f"Expected a chart at {path}, found no {_METADATA} in it.")
    try:
        described = strict_yaml.load_object(metadata)
    except NotStrict as error:
        raise InvalidSpec(f"Expected {_METADATA} of {path} to be YAML, found {error}.") from error
    name, version = described.get("name"), described.get("version")
    if not isinstance(name, str) or not is_repository(PREFIX + name) or "/" in name:
        raise InvalidSpec(
            f"Expected {_METADATA} of {path} to have a name in lower case, found {name!a:.100}."
        )
    if not isinstance(version, str) or not _VERSION.fullmatch(version) or len(version) > 128:
        raise InvalidSpec(
            f"Expected {_METADATA} of {path} to have a version as in 1.2.3, found {version!a:.100}."
        )
    return Chart(name, version, described, archive(name))


# -- a folder -----------------------------------------------------------------------------------------------


def _files_below(folder: Path) -> dict[str, bytes]:
    """Every file that Helm would pack, by its path; what cannot be the same file everywhere is refused."""
    rules = _rules(folder)
    found: dict[str, bytes] = {}
    size = 0
    with explained(folder):
        for place, folders, names in os.walk(folder, onerror=_raise):
            inside = Path(place).relative_to(folder)
            folders[:] = sorted(name for name in folders if not _ignored(inside / name, True, rules))
            for name in sorted(names):
                if _ignored(inside / name, False, rules):
                    continue
                path = (inside / name).as_posix()
                content = _read(Path(place, name), MAX_CHART_BYTES - size)
                found[path] = content
                size += len(content)
                if len(found) > MAX_FILES:
                    raise InvalidSpec(f"Expected a chart at {folder} with at most {MAX_FILES} files.")
    require_safe_set(found)
    return found


def _raise(error: OSError) -> None:
    """Without it os.walk leaves out what it cannot read."""
    raise error


def _rules(folder: Path) -> list[str]:
    try:
        text = (folder / _IGNORE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = (line.strip() for line in text.splitlines()[:1000])
    return [line for line in lines if line and not line.startswith("#")]


def _ignored(path: Path, is_folder: bool, rules: list[str]) -> bool:
    """Helm's reading of .helmignore: the last rule that matches decides; `!` takes a file back."""
    if len(path.parts) == 2 and path.parts[0] == "templates" and path.name.startswith("."):
        return True
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if pattern.endswith("/"):
            if not is_folder:
                continue
            pattern = pattern.rstrip("/")
        text = path.as_posix() if "/" in pattern else path.name
        if fnmatchcase(text, pattern.lstrip("/")):
            ignored = not rule.startswith("!")
    return ignored


def _read(path: Path, limit: int) -> bytes:
    with explained(path):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InvalidSpec(f"Expected plain files in a chart, found {path}, which is a link or a device.")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise InvalidSpec(f"Expected a chart of at most {MAX_CHART_BYTES} bytes, found more at {path}.")
    return content


def _packed(name: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(files, key=lambda path: path.encode("utf-8")):
            member = tarfile.TarInfo(f"{name}/{path}")
            member.size = len(files[path])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(files[path]))
    return _stored_gzip(buffer.getvalue())


def _stored_gzip(content: bytes) -> bytes:
    """A gzip stream of stored blocks (RFC 1951, 3.2.4): written here, so that no library's version shows."""
    out = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    for at in range(0, max(1, len(content)), _STORED_BYTES):
        block = content[at : at + _STORED_BYTES]
        is_last = at + _STORED_BYTES >= len(content)
        out += struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block
    return bytes(out + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF))
