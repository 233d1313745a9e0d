# SPDX-License-Identifier: Apache-2.0
"""What a bundle shall carry, as the user wrote it: a YAML file or options. Nothing is looked up here.

Whatever can be known to be wrong without a network is refused here, in one sentence that names the place.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sovereign_airgap import strict_yaml
from sovereign_airgap.bundle.index import is_bundle_name
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import InvalidReference, InvalidSpec
from sovereign_airgap.names import defect_of
from sovereign_airgap.reference import HubReference, OciReference, is_repository
from sovereign_airgap.selection import Wish
from sovereign_airgap.strict_json import NotStrict

SPEC_BYTES = 1024 * 1024
MAX_VERSION = 999_999_999
ALL_PLATFORMS = "all"
_MAX_ITEMS = 500
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9._]+)?")
# The tag that a mirror gives: it is never moved to another manifest.
_COMMIT_TAG = re.compile(r"[0-9a-f]{40}(?:-[0-9a-f]{8})?")
# Titles that the bundle itself gives.
_OWN_TITLES = ("bom.cdx.json", "contents.txt", "licenses/")

Glob = Annotated[str, Field(min_length=1, max_length=300)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """As a ValueError, so that the place in the spec is told too."""
    try:
        yield
    except InvalidReference as error:
        raise ValueError(str(error)) from error


def _model_source(value: Any) -> HubReference | OciReference:
    if isinstance(value, HubReference | OciReference):
        return value
    if not isinstance(value, str):
        raise ValueError("should be hf://org/name@COMMIT or oci://HOST/REPO@sha256:…")
    if value.startswith("hf://"):
        with _told():
            return HubReference.parse(value)
    if not value.startswith("oci://"):
        raise ValueError(f"should begin with hf:// or oci://, found {value[:100]!r}")
    with _told():
        found = OciReference.parse(value)
    if found.digest is None and (found.tag is None or not _COMMIT_TAG.fullmatch(found.tag)):
        raise ValueError(f"should end with @sha256:… or the tag of a commit (others can move), found {found}")
    return found


def _image(value: Any) -> OciReference:
    if isinstance(value, OciReference):
        return value
    if not isinstance(value, str):
        raise ValueError("should be HOST/REPO:TAG or HOST/REPO@sha256:…")
    host, slash, _ = value.removeprefix("oci://").partition("/")
    if not slash or ("." not in host and ":" not in host and host != "localhost"):
        raise ValueError(f"should begin with the registry's host, as in docker.io/{value[:150]}")
    with _told():
        found = OciReference.parse(value)
    if not found.repository or (found.tag is None and found.digest is None):
        raise ValueError(f"should name a repository and a tag or digest, found {value[:200]!r}")
    return found


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("should be a path")
    return Path(value)


def _globs(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


LocalPath = Annotated[Path, BeforeValidator(_path)]
Globs = Annotated[tuple[Glob, ...], BeforeValidator(_globs), Field(max_length=100)]


class ModelSpec(_Part):
    """A model: a commit of the hub, or an artifact of a registry.

    `repository` is its name in the registry behind the gap; `manifest` a SovereignModel for it, which `load`
    rewrites.
    """

    source: Annotated[HubReference | OciReference, BeforeValidator(_model_source)]
    include: Globs = ()
    exclude: Globs = ()
    repository: str | None = None
    manifest: LocalPath | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.source, OciReference) and (self.include or self.exclude):
            raise ValueError("include and exclude are for hf:// sources: an artifact is carried whole")
        if self.repository is not None and not is_repository(self.repository):
            raise ValueError(
                f"repository should be a name in lower case as in models/org/name, found "
                f"{self.repository[:200]!r}"
            )
        return self

    @property
    def wish(self) -> Wish:
        return Wish(self.include, self.exclude)


class ImageSpec(_Part):
    """An image. `platform` is `os/architecture[/variant]`, `all`, or None for the run's default."""

    reference: Annotated[OciReference, BeforeValidator(_image)]
    platform: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.platform is not None:
            require_platform(self.platform)
        return self


class ChartSpec(_Part):
    """A chart: its folder, or the archive that `helm package` made."""

    path: LocalPath


class FileSpec(_Part):
    """A file, or a folder with files. `title` is the path under which the other side finds it."""

    path: LocalPath
    title: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.title is not None:
            require_title(self.title)
        return self


Models = Annotated[tuple[ModelSpec, ...], BeforeValidator(_globs), Field(max_length=_MAX_ITEMS)]
Images = Annotated[tuple[ImageSpec, ...], BeforeValidator(_globs), Field(max_length=_MAX_ITEMS)]
Charts = Annotated[tuple[ChartSpec, ...], BeforeValidator(_globs), Field(max_length=_MAX_ITEMS)]
Files = Annotated[tuple[FileSpec, ...], BeforeValidator(_globs), Field(max_length=_MAX_ITEMS)]


class BundleSpec(_Part):
    """A whole bundle. `version` None means: one more than the base's, or 1 where there is none."""

    name: str
    version: int | None = Field(default=None, ge=1, le=MAX_VERSION)
    models: Models = ()
    images: Images = ()
    charts: Charts = ()
    files: Files = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not is_bundle_name(self.name):
            raise ValueError(
                "name should be at most 63 lower-case letters, digits, dots and dashes, found "
                f"{self.name[:100]!r}"
            )
        if not (self.models or self.images or self.charts or self.files):
            raise ValueError("a bundle should carry something: models, images, charts or files")
        return self

    def below(self, folder: Path) -> Self:
        """The same with paths relative to `folder`, as a file's own paths are."""

        def placed(path: Path) -> Path:
            return folder / path

        models = tuple(
            model if model.manifest is None else model.model_copy(update={"manifest": placed(model.manifest)})
            for model in self.models
        )
        charts = tuple(ChartSpec(path=placed(chart.path)) for chart in self.charts)
        files = tuple(file.model_copy(update={"path": placed(file.path)}) for file in self.files)
        return self.model_copy(update={"models": models, "charts": charts, "files": files})


def load_spec(path: Path) -> BundleSpec:
    """Reads a spec; its paths count from its own folder. Raises InvalidSpec."""
    with explained(path), path.open("rb") as file:
        content = file.read(SPEC_BYTES + 1)
    if len(content) > SPEC_BYTES:
        raise InvalidSpec(f"Expected {path} to have at most {SPEC_BYTES} bytes, found more.")
    try:
        document = strict_yaml.load_object(content)
    except NotStrict as error:
        raise InvalidSpec(f"Expected {path} to be a bundle's spec in YAML, found {error}.") from error
    return _validated(document, str(path)).below(path.parent)


def from_options(
    name: str,
    version: int | None,
    models: Iterable[str] = (),
    images: Iterable[str] = (),
    charts: Iterable[Path] = (),
    files: Iterable[str] = (),
) -> BundleSpec:
    """A spec from the command line; a file is `PATH` or `PATH=TITLE`. Raises InvalidSpec."""
    listed: list[dict[str, Any]] = []
    for file in files:
        path, found, title = file.rpartition("=")
        listed.append({"path": path, "title": title} if found else {"path": file})
    document: dict[str, Any] = {
        "name": name,
        "version": version,
        "models": [{"source": source} for source in models],
        "images": [{"reference": reference} for reference in images],
        "charts": [{"path": path} for path in charts],
        "files": listed,
    }
    return _validated(document, "the options")


def require_platform(platform: str) -> None:
    """Raises ValueError unless it is `os/architecture[/variant]` or `all`."""
    if platform != ALL_PLATFORMS and not _PLATFORM.fullmatch(platform):
        raise ValueError(f"platform should be as in linux/amd64, or all, found {platform[:80]!r}")


def require_title(title: str) -> None:
    """Raises ValueError unless a user may give this title to a file."""
    defect = defect_of(title)
    if defect is not None:
        raise ValueError(f"the title {title[:100]!r} {defect}")
    if title.lower().startswith(_OWN_TITLES):
        raise ValueError(f"the title {title[:100]!r} belongs to the bundle itself")


def _validated(document: dict[str, Any], where: str) -> BundleSpec:
    try:
        return BundleSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        place = _place(first["loc"])
        found = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InvalidSpec(f"In {where}{': ' + place if place else ''}: {found}{more}.") from error


def _place(location: Sequence[int | str]) -> str:
    """`('models', 0, 'source')` as `models[0].source`."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step[:60]}"
    return ascii(text.lstrip("."))[1:-1]
