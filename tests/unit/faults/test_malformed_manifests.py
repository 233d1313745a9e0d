# SPDX-License-Identifier: Apache-2.0
"""A manifest that is not exactly a model's is refused, by one of the reasons that users know."""

import copy
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.errors import MalformedManifest, Refusal, TooManyFiles, UnsafeFileName
from sovereign_airgap.manifest import ModelManifest

DIGEST = "sha256:" + "a" * 64
COMMIT = "0123456789" * 4
GOOD: dict[str, object] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "artifactType": "application/vnd.cncf.model.manifest.v1+json",
    "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": DIGEST, "size": 2},
    "layers": [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": "sha256:" + "b" * 64,
            "size": 8,
            "annotations": {
                "org.cncf.model.filepath": "model.safetensors",
                "org.opencontainers.image.title": "model.safetensors",
            },
        }
    ],
    "annotations": {
        "org.opencontainers.image.source": "hf://acme/tiny",
        "org.opencontainers.image.revision": COMMIT,
        "dev.sovereign.format": "1",
    },
}

Path = tuple[str | int, ...]


def changed(path: Path, value: object) -> bytes:
    document = copy.deepcopy(GOOD)
    at: object = document
    for key in path[:-1]:
        at = at[key]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    return json.dumps(document).encode()


def removed(key: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != key}).encode()


TEXT = json.dumps(GOOD)
LAYER: Path = ("layers", 0)
FILEPATH: Path = (*LAYER, "annotations", "org.cncf.model.filepath")

MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"<html>not found</html>",
    "a list": b"[]",
    "null": b"null",
    "cut": TEXT.encode()[:-5],
    "a key twice": TEXT.replace('"schemaVersion": 2', '"schemaVersion": 2, "schemaVersion": 2').encode(),
    "layers twice": (TEXT[:-1] + ', "layers": []}').encode(),
    "a digest twice in a layer": TEXT.replace('"size": 8', f'"size": 8, "digest": "{DIGEST}"').encode(),
    "not a number": TEXT.replace('"size": 8', '"size": NaN').encode(),
    "schemaVersion 1": changed(("schemaVersion",), 1),
    "schemaVersion true": changed(("schemaVersion",), True),
    "schemaVersion as text": changed(("schemaVersion",), "2"),
    "an index": changed(("mediaType",), "application/vnd.oci.image.index.v1+json"),
    "a container image": changed(("artifactType",), "application/vnd.oci.image.config.v1+json"),
    "no artifactType": removed("artifactType"),
    "no config": removed("config"),
    "config of a container image": changed(("config", "mediaType"), "application/vnd.oci.image.config"),
    "no layers": removed("layers"),
    "layers empty": changed(("layers",), []),
    "layers an object": changed(("layers",), {}),
    "a layer that is a string": changed(LAYER, "layer"),
    "a compressed layer": changed((*LAYER, "mediaType"), "application/vnd.cncf.model.weight.v1.tar+gzip"),
    "size negative": changed((*LAYER, "size"), -1),
    "size a text": changed((*LAYER, "size"), "8"),
    "size a float": changed((*LAYER, "size"), 8.0),
    "size true": changed((*LAYER, "size"), True),
    "size absurd": changed((*LAYER, "size"), 1 << 80),
    "digest short": changed((*LAYER, "digest"), "sha256:abc"),
    "digest upper case": changed((*LAYER, "digest"), "sha256:" + "B" * 64),
    "digest of another kind": changed((*LAYER, "digest"), "md5:" + "b" * 32),
    "digest with a path": changed((*LAYER, "digest"), "sha256:" + "../" * 21 + "b"),
    "no file path": changed((*LAYER, "annotations"), {}),
    "file path a number": changed(FILEPATH, 1),
    "one digest with two sizes": changed(("layers",), [
        GOOD["layers"][0],  # type: ignore[index]
        {**GOOD["layers"][0], "size": 9, "annotations": {"org.cncf.model.filepath": "b"}},  # type: ignore[index]
    ]),
    "no source": changed(("annotations",), {"dev.sovereign.format": "1"}),
    "another format": changed(("annotations", "dev.sovereign.format"), "2"),
    "too large": b" " * (4 * 1024 * 1024) + TEXT.encode(),
}  # fmt: skip


def test_the_good_manifest_is_read() -> None:
    manifest = ModelManifest.parse(TEXT.encode())
    assert [layer.path for layer in manifest.layers] == ["model.safetensors"]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_manifest_is_refused(name: str) -> None:
    with pytest.raises(MalformedManifest) as refused:
        ModelManifest.parse(MALFORMED[name])

    assert refused.value.exit_code == 3
    assert str(refused.value).endswith(".")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "con", "x\0y", ""])
def test_an_unsafe_file_name_in_a_manifest_is_refused(name: str) -> None:
    with pytest.raises(UnsafeFileName):
        ModelManifest.parse(changed(FILEPATH, name))


def test_two_layers_for_one_file_are_refused() -> None:
    layer = GOOD["layers"][0]  # type: ignore[index]
    with pytest.raises(UnsafeFileName):
        ModelManifest.parse(changed(("layers",), [layer, layer]))


def test_more_files_than_the_bound_are_refused() -> None:
    layers = [
        {**GOOD["layers"][0], "annotations": {"org.cncf.model.filepath": f"{n}.json"}}  # type: ignore[index]
        for n in range(4001)
    ]
    with pytest.raises((MalformedManifest, TooManyFiles)):
        ModelManifest.parse(changed(("layers",), layers))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES: list[Path] = [
    *((key,) for key in GOOD),
    *((("config", key)) for key in ("mediaType", "digest", "size")),
    LAYER,
    *((*LAYER, key) for key in ("mediaType", "digest", "size", "annotations")),
    FILEPATH,
    ("annotations", "dev.sovereign.format"),
    ("annotations", "surplus"),
]


def refused_or_read(parse: Callable[[bytes], ModelManifest], content: bytes) -> None:
    try:
        manifest = parse(content)
    except Refusal:
        return
    assert manifest.layers


@given(st.sampled_from(PLACES), JUNK)
def test_junk_in_any_place_is_refused_or_without_effect(place: Path, junk: object) -> None:
    refused_or_read(ModelManifest.parse, changed(place, junk))


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedManifest):
        ModelManifest.parse(content)
