# SPDX-License-Identifier: Apache-2.0
"""The bill of materials: CycloneDX 1.6 as its schema has it, every contradiction with the bundle named."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.bundle import bom
from sovereign_airgap.bundle.card import Card, License
from sovereign_airgap.bundle.index import Index, Kind
from sovereign_airgap.bundle.layout import Directory, read_blob
from sovereign_airgap.manifest import Descriptor
from tests.unit.airgap.creations import Connected, Opened, push_image, push_index
from tests.unit.airgap.models import REPO, TAKEN, write

Document = dict[str, Any]

# From the schema of CycloneDX 1.6: what an object may have, and what it must have.
SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "bom": (
        {
            "$schema", "bomFormat", "specVersion", "version", "metadata", "components", "dependencies",
            "compositions",
        },
        {"bomFormat", "specVersion"},
    ),
    "component": (
        {
            "type", "bom-ref", "group", "name", "version", "description", "hashes", "licenses", "purl",
            "externalReferences", "components", "modelCard", "properties",
        },
        {"type", "name"},
    ),
    "modelCard": ({"modelParameters", "properties"}, set()),
    "modelParameters": ({"task", "architectureFamily", "modelArchitecture"}, set()),
    "externalReference": ({"type", "url", "comment", "hashes"}, {"type", "url"}),
    "hash": ({"alg", "content"}, {"alg", "content"}),
    "property": ({"name", "value"}, {"name"}),
    "dependency": ({"ref", "dependsOn"}, {"ref"}),
}  # fmt: skip
TYPES = {"machine-learning-model", "container", "application", "file", "data"}
REFERENCES = {"distribution", "source-distribution", "license"}


def require_shape(kind: str, value: Any) -> None:
    may, must = SHAPES[kind]
    assert isinstance(value, dict), (kind, value)
    assert must <= value.keys() <= may, (kind, value.keys() - may)


def require_component(component: Document) -> None:
    require_shape("component", component)
    assert component["type"] in TYPES
    assert isinstance(component["name"], str) and component["name"]
    for digest in component.get("hashes", []):
        require_hash(digest)
    for reference in component.get("externalReferences", []):
        require_shape("externalReference", reference)
        assert reference["type"] in REFERENCES
        assert re.fullmatch(r"[!-~]+", reference["url"])
        for digest in reference.get("hashes", []):
            require_hash(digest)
    for entry in component.get("licenses", []):
        assert entry.keys() == {"license"} and entry["license"].keys() in ({"id"}, {"name"})
    card = component.get("modelCard")
    if card is not None:
        assert component["type"] == "machine-learning-model", "others must not have one"
        require_shape("modelCard", card)
        require_shape("modelParameters", card["modelParameters"])
    for entry in [*component.get("properties", []), *(card or {}).get("properties", [])]:
        require_shape("property", entry)
        assert isinstance(entry["value"], str)
    for child in component.get("components", []):
        require_component(child)


def require_hash(digest: Document) -> None:
    require_shape("hash", digest)
    assert digest["alg"] == "SHA-256" and re.fullmatch("[0-9a-f]{64}", digest["content"])


@pytest.fixture
def bundle(side: Connected) -> Opened:
    """Two models, an image, a chart and a file."""
    amd = push_image(side.registry, "")
    push_index(side.registry, "1.2", {"linux/amd64": amd})
    write(side.folder, {"a.txt": b"a"})
    spec = side.spec(
        images=[{"reference": f"{side.registry.host}/tools/pause:1.2"}],
        charts=[{"path": "charts/sovereign-crds"}],
        files=[{"path": str(side.folder / "a.txt")}],
    )
    return Opened(side.create(spec=spec).path)


def bill_of(bundle: Opened) -> Document:
    return bundle.json(bundle.root(Kind.FILE, bom.BOM_TITLE).descriptor)  # type: ignore[return-value]


def test_the_bill_is_cyclonedx_1_6_and_has_no_time(bundle: Opened) -> None:
    bill = bill_of(bundle)
    require_shape("bom", bill)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    about = bill["metadata"]["component"]
    require_component(about)
    assert (about["name"], about["version"]) == ("site", "1")
    assert not {"timestamp", "tools", "serialNumber"} & {*bill, *bill["metadata"]}
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(references) == len(set(references)) == 2 + 1 + 1 + 1 + 2
    for component in bill["components"]:
        require_component(component)
    (dependency,) = bill["dependencies"]
    require_shape("dependency", dependency)
    assert dependency == {"ref": about["bom-ref"], "dependsOn": references}


def test_a_model_has_card_hashes_licence_source_and_revision(side: Connected, bundle: Opened) -> None:
    commit = side.hub.commit(REPO)
    reference = f"model:models/org/tiny-moe:{commit}"
    (model,) = [each for each in bill_of(bundle)["components"] if each["bom-ref"] == reference]
    root = bundle.root(Kind.MODEL, f"models/org/tiny-moe:{commit}")
    assert (model["type"], model["group"], model["name"]) == ("machine-learning-model", "Org", "Tiny-MoE")
    assert model["version"] == commit
    assert model["purl"] == f"pkg:huggingface/Org/Tiny-MoE@{commit}"
    assert model["hashes"] == [{"alg": "SHA-256", "content": root.descriptor.digest.hex}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [file["name"] for file in model["components"]] == list(TAKEN)
    urls = {reference["type"]: reference["url"] for reference in model["externalReferences"]}
    assert urls == {
        "source-distribution": f"hf://Org/Tiny-MoE@{commit}",
        "distribution": f"models/org/tiny-moe@{root.descriptor.digest}",
        "license": "licenses/models/org/tiny-moe/LICENSE",
    }
    parameters = model["modelCard"]["modelParameters"]
    assert parameters == {"task": "text-generation", "modelArchitecture": "MixtralForCausalLM"}
    facts = {entry["name"]: entry["value"] for entry in model["modelCard"]["properties"]}
    assert facts["sovereign:experts"] == "2" and facts["sovereign:dtype"] == "bfloat16"


def test_an_image_names_where_it_came_from(side: Connected, bundle: Opened) -> None:
    (image,) = [each for each in bill_of(bundle)["components"] if each["type"] == "container"]
    (root,) = bundle.index.of_kind(Kind.IMAGE)
    assert image["hashes"][0]["content"] == root.descriptor.digest.hex
    host = side.registry.host
    assert image["purl"] == (
        f"pkg:oci/pause@sha256%3A{root.descriptor.digest.hex}?repository_url={host}/tools/pause&tag=1.2"
    )
    (reference,) = image["externalReferences"]
    assert reference["url"].startswith(f"oci://{host}/tools/pause:1.2@sha256:")


def check(bundle: Opened, bill: Document | bytes, index: Index | None = None) -> list[str]:
    content = bill if isinstance(bill, bytes) else json.dumps(bill).encode()
    reader = Directory(bundle.path)

    def read(document: Descriptor) -> bytes:
        return read_blob(reader, document.digest, document.size)

    return bom.check(content, index or bundle.index, read)


def model_in(bill: Document) -> Document:
    found: Document = next(each for each in bill["components"] if each["type"] == "machine-learning-model")
    return found


CHANGES: dict[str, tuple[Callable[[Document], object], str]] = {
    "another format": (lambda bill: bill.update(specVersion="1.5"), "should be CycloneDX 1.6"),
    "another version": (
        lambda bill: bill["metadata"]["component"].update(version="2"),
        "should be of site 1, found 'site 2'",
    ),
    "no metadata": (lambda bill: bill.pop("metadata"), "should be of site 1"),
    "nothing listed": (
        lambda bill: bill.update(components=None),
        "does not list charts/sovereign-crds:0.1.0",
    ),
    "one left out": (lambda bill: bill["components"].pop(), "does not list models/org/tiny-twin"),
    "one too many": (
        lambda bill: bill["components"].append({"type": "file", "name": "x", "bom-ref": "file:x"}),
        "'file:x', which the bundle does not carry",
    ),
    "one twice": (lambda bill: bill["components"].append(bill["components"][0]), "twice"),
    "another digest": (
        lambda bill: bill["components"][0]["hashes"][0].update(content="0" * 64),
        "another digest for charts/sovereign-crds",
    ),
    "no hashes": (lambda bill: bill["components"][0].pop("hashes"), "another digest"),
    "another type": (lambda bill: model_in(bill).update(type="data"), "a machine-learning-model"),
    "another revision": (lambda bill: model_in(bill).update(version="0" * 40), "another revision"),
    "another source": (
        lambda bill: model_in(bill)["externalReferences"][0].update(url="hf://Org/Other@main"),
        "another source",
    ),
    "another file": (
        lambda bill: model_in(bill)["components"][0].update(name="EVIL"),
        "disagree about 'EVIL'",
    ),
    "a file's digest": (
        lambda bill: model_in(bill)["components"][0]["hashes"][0].update(content="0" * 64),
        "disagree about 'LICENSE'",
    ),
    "files without names": (
        lambda bill: model_in(bill).update(components=[{}, 1]),
        "disagree about 'LICENSE'",
    ),
}


def test_every_contradiction_is_named(bundle: Opened) -> None:
    good = bill_of(bundle)
    assert check(bundle, good) == []
    assert check(bundle, {**good, "vulnerabilities": [], "components": [*good["components"]]}) == []
    for name, (change, told) in CHANGES.items():
        bad = copy.deepcopy(good)
        change(bad)
        defects = check(bundle, bad)
        assert any(told in defect for defect in defects), (name, defects)
        assert all(defect.endswith(".") and "\n" not in defect for defect in defects)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a":1,"a":1}', b"\xff"])
def test_what_is_no_bill_is_a_defect_and_no_crash(bundle: Opened, content: bytes) -> None:
    assert len(check(bundle, content)) == 1


CARDS: dict[bytes, Card] = {
    b"---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n": Card(
        (License("Apache-2.0"),), "text-generation"
    ),
    b"---\r\nlicense: [mit, llama3]\r\n---\r\n": Card((License("MIT"), License(name="llama3"))),
    b"---\nlicense: other\nlicense_name: my-licence\n---\n": Card((License(name="my-licence"),)),
    b"---\nlicense: gpl-3.0\n---\n": Card((License("GPL-3.0-only"),)),
    b"---\nlicense: other\n---\n": Card((License(name="other"),)),
    b"---\nlicense: mit\n": Card(),
    b"# no front matter\nlicense: mit\n": Card(),
    b"---\nlicense: {a: b}\npipeline_tag: [x]\n---\n": Card(),
    b'---\nlicense: "a\\nb"\n---\n': Card(),
    b"---\na: &x [*x]\n---\n": Card(),
    b"---\nlicense: !!bool x\n---\n": Card(),
    b"": Card(),
}


@pytest.mark.parametrize("readme", CARDS)
def test_a_card_says_what_it_says(readme: bytes) -> None:
    assert Card.parse(readme) == CARDS[readme]


FRAGMENTS = [
    b"!!bool ", b"!!int ", b"!!float ", b"!!null ", b"!!timestamp ", b"!!binary ", b"!!omap ", b"!!merge ",
    b"!!value ", b"!x ", b"! ", b"a", b": ", b"?", b"- ", b"\n", b" ", b"'", b'"', b"{", b"}", b"[", b"]",
    b"&a ", b"*a", b"<<", b"0x", b"1e9", b"=", b"~", b"|", b">", b"%", b"@", b"---\n", b"\\x", b"#",
]  # fmt: skip


@given(st.binary(max_size=300) | st.lists(st.sampled_from(FRAGMENTS), max_size=20).map(b"".join))
def test_no_readme_fails(content: bytes) -> None:
    Card.parse(b"---\n" + content + b"\n---\n")
