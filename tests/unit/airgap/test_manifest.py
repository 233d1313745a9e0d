# SPDX-License-Identifier: Apache-2.0
"""The artifact's bytes: the same on every machine, for ever (tests/golden/manifests)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import MalformedManifest, SovereignError
from sovereign_airgap.extraction import parameter_size
from sovereign_airgap.manifest import (
    CONFIG_TYPE,
    DOC_TYPE,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Layer,
    ModelConfig,
    ModelManifest,
)
from sovereign_airgap.selection import Wish

GOLDEN = Path("tests/golden/manifests")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def the_golden_model(wish: Wish = Wish()) -> tuple[bytes, bytes]:  # noqa: B008
    """Manifest and config blob of a model that exists only here, with names that tempt a sorter."""
    paths = {
        "tokenizer.json": WEIGHT_CONFIG_TYPE,
        "model-00001-of-00002.safetensors": WEIGHT_TYPE,
        "model-00002-of-00002.safetensors": WEIGHT_TYPE,
        "Ångström.json": WEIGHT_CONFIG_TYPE,
        "config.json": WEIGHT_CONFIG_TYPE,
        "a/z.json": WEIGHT_CONFIG_TYPE,
        "a-b.json": WEIGHT_CONFIG_TYPE,
        "LICENSE": DOC_TYPE,
        "😀.json": WEIGHT_CONFIG_TYPE,
        "ﬀ.json": WEIGHT_CONFIG_TYPE,
    }
    layers = tuple(
        Layer(path, Digest.of(path.encode()), len(path) << 20, kind) for path, kind in paths.items()
    )
    config = ModelConfig(
        "Org/Golden", "hf://Org/Golden", REVISION, "MixtralForCausalLM", "bf16", "46.7b"
    ).encode(layers)
    manifest = ModelManifest(
        Descriptor.of(CONFIG_TYPE, config), layers, "hf://Org/Golden", REVISION, wish.text
    )
    return manifest.encode(), config


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("format-1", Wish()),
        ("format-1-selection", Wish(include=("*.safetensors", "*.json"), exclude=("é*",))),
    ],
)
def test_a_manifest_of_format_1_never_changes(name: str, wish: Wish) -> None:
    manifest, config = the_golden_model(wish)
    recorded = json.loads((GOLDEN / f"{name}.digests.json").read_text())
    assert manifest == (GOLDEN / f"{name}.manifest.json").read_bytes()
    assert config == (GOLDEN / "format-1.config.json").read_bytes()
    assert {"manifest": str(Digest.of(manifest)), "config": str(Digest.of(config))} == recorded
    parsed = ModelManifest.parse(manifest)
    assert parsed.encode() == manifest
    assert parsed.selection == wish.text


def test_layers_are_sorted_by_bytes_not_by_characters() -> None:
    paths = [layer.path for layer in ModelManifest.parse(the_golden_model()[0]).layers]
    assert paths == sorted(paths, key=str.encode)
    assert paths.index("ﬀ.json") < paths.index("😀.json"), "UTF-16 would sort these the other way round"


def test_each_layer_has_exactly_two_annotations() -> None:
    for layer in json.loads(the_golden_model()[0])["layers"]:
        assert layer["annotations"].keys() == {"org.cncf.model.filepath", "org.opencontainers.image.title"}


def a_document() -> dict[str, object]:
    document: dict[str, object] = json.loads(the_golden_model()[0])
    return document


def changed(path: str, value: object) -> bytes:
    document: object = a_document()
    *way, last = path.split(".")
    at = document
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]  # type: ignore[index]
    if isinstance(at, list):
        at[int(last)] = value
    elif value is KeyError:
        del at[last]  # type: ignore[attr-defined]
    else:
        at[last] = value  # type: ignore[index]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", 1), ("schemaVersion", "2"), ("mediaType", KeyError), ("artifactType", "text/plain"),
        ("config", None), ("config.mediaType", "application/json"), ("config.digest", "sha512:00"),
        ("layers", []), ("layers", {}), ("layers.0.size", -1), ("layers.0.size", 1.5),
        ("layers.0.size", True),
        ("layers.0.size", 1 << 60), ("layers.0.digest", "sha256:zz"), ("layers.0.annotations", KeyError),
        ("layers.0.mediaType", "application/vnd.cncf.model.weight.v1.tar"), ("layers.0", 1),
        ("layers.0.annotations", {"org.cncf.model.filepath": 1}), ("annotations", KeyError),
        ("annotations", {}), ("layers.1.digest", str(Digest.of(b"LICENSE"))),
    ],
)  # fmt: skip
def test_a_manifest_with_one_thing_wrong_is_refused(path: str, value: object) -> None:
    with pytest.raises(MalformedManifest) as caught:
        ModelManifest.parse(changed(path, value))
    assert str(caught.value).endswith(".")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    with pytest.raises(SovereignError):
        ModelManifest.parse(content)


def test_the_order_of_a_wish_does_not_matter() -> None:
    assert Wish(("b", "a", "a")).text == Wish(("a", "b")).text
    assert Wish(("a",)).tag(REVISION) != Wish(exclude=("a",)).tag(REVISION)
    assert Wish().tag(REVISION) == REVISION


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (46_702_792_704, "46.7b"),
        (8_000_000_000, "8b"),
        (1_838_208, "1.8m"),
        (940, "940"),
        (1000, "1k"),
        (0, "0"),
    ],
)
def test_parameters_are_rounded_by_integers(count: int, said: str) -> None:
    assert parameter_size(count) == said
