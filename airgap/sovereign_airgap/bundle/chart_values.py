# SPDX-License-Identifier: Apache-2.0
"""The values with which a chart takes its images from the registry behind the gap. Pure.

Our own charts have known keys. Of any other chart the defaults are looked through for images that the bundle
carries, in the two forms that charts use: one string, or a mapping of repository and tag.
"""

from __future__ import annotations

from dataclasses import dataclass

from sovereign_airgap import strict_yaml
from sovereign_airgap.bundle.chart_archive import NoChart, file_in
from sovereign_airgap.bundle.image_names import Images, RelocatedImage, pinned, tag_and_digest
from sovereign_airgap.strict_json import Json, NotStrict

OPERATOR_CHART = "sovereign-operator"
CRDS_CHART = "sovereign-crds"
# Keys below `images` in charts/sovereign-operator/values.yaml.
_ROLES = ("operator", "airgap", "registry", "coredns")
_VALUES_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Values:
    """What a values file says; `notes` are sentences for whoever installs the chart."""

    tree: dict[str, Json]
    notes: tuple[str, ...] = ()


def values_of(chart: str, archive: bytes | None, images: Images) -> Values:
    """The values for a chart of this name; `archive` is not looked at for our own charts."""
    if chart == CRDS_CHART:
        return Values({})
    if chart == OPERATOR_CHART:
        return _of_operator(images)
    if archive is None:
        return Values({}, (f"the archive of the chart {chart} was not read: set its images yourself.",))
    try:
        defaults = strict_yaml.load_object(file_in(archive, "values.yaml", _VALUES_BYTES) or b"{}")
    except (NotStrict, NoChart) as error:
        return Values(
            {}, (f"the values of the chart {chart} cannot be read ({error}): set its images yourself.",)
        )
    found = _overrides(defaults, images)
    if found:
        return Values(found)
    return Values({}, (f"no default of the chart {chart} names an image of the bundle.",))


def _of_operator(images: Images) -> Values:
    found: dict[str, Json] = {}
    notes = []
    for role in _ROLES:
        image = images.named(role)
        if image is None:
            notes.append(
                f"images.{role} of the chart {OPERATOR_CHART} is not set: the bundle has no such image."
            )
        else:
            found[role] = pinned(image)
    # Behind the gap there is no hub; the chart's default says the same, this says that it is meant.
    return Values({"images": found, "externalSources": {"allowed": False}}, tuple(notes))


def _overrides(defaults: dict[str, Json], images: Images) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in defaults.items():
        if isinstance(value, str):
            image = images.find(value) if "/" in value or ":" in value else None
            if image is not None:
                found[key] = pinned(image)
        elif isinstance(value, dict):
            children = _of_mapping(value, images) or _overrides(value, images)
            if children:
                found[key] = children
    return found


def _of_mapping(value: dict[str, Json], images: Images) -> dict[str, Json]:
    """The override for `{registry?, repository, tag?, digest?}`; empty where it names no image of ours."""
    repository, registry = value.get("repository"), value.get("registry")
    if not isinstance(repository, str) or not repository:
        return {}
    name = f"{registry}/{repository}" if isinstance(registry, str) and registry else repository
    image = _meant(name, value.get("tag"), images)
    if image is None:
        return {}
    found: dict[str, Json] = {}
    if "registry" in value:
        found["registry"] = image.now.host
        found["repository"] = image.now.repository
    else:
        found["repository"] = f"{image.now.host}/{image.now.repository}"
    if "digest" in value:
        found["digest"] = str(image.now.digest)
    else:
        found["tag"] = tag_and_digest(image)
    return found


def _meant(name: str, tag: Json, images: Images) -> RelocatedImage | None:
    # Where the tag is no image's of the bundle (charts leave it to appVersion), the name alone decides.
    told = images.find(f"{name}:{tag}") if isinstance(tag, str) and tag else None
    return told or images.find(name)
