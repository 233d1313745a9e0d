# SPDX-License-Identifier: Apache-2.0
"""The steps of an installation, with stand-ins for ctr, kubectl and helm and a real load into a registry."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sovereign_airgap.bundle.index import Root
from sovereign_airgap.bundle.layout import Directory
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.signatures import sign
from sovereign_airgap.bundle.split import split
from sovereign_airgap.cli import run
from sovereign_airgap.errors import BundleLacks, DigestMismatch
from sovereign_airgap.install.archive import archive
from sovereign_airgap.install.node import hosts_toml
from sovereign_airgap.install.steps import STEPS
from tests.unit.airgap.bundles import COMMIT_ONE, MODEL_ONE, Draft, a_root, model_files
from tests.unit.airgap.registry_double import RegistryDouble
from tests.unit.airgap.signers import ANNA, BERT, WHEN
from tests.unit.airgap.site_programs import SitePrograms

pytestmark = pytest.mark.slow

NAME = "sovereign-registry.sovereign-system.svc.cluster.local:5000"
Install = Callable[..., int]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: RegistryDouble) -> SitePrograms:
    """ctr and kubectl are on PATH, helm is not: the bundle brings it."""
    found = SitePrograms(tmp_path / "programs")
    for name in ("ctr", "kubectl"):
        found.place(name)
    found.answer(address="10.96.7.7", login={"auth": "bWlycm9yOnNlY3JldA=="})
    monkeypatch.setenv("PATH", f"{found.bin}:/usr/bin:/bin")
    return found


def a_platform(folder: Path, programs: SitePrograms, *, helm: bool = True, operator: bool = True) -> Path:
    draft = Draft(folder)
    draft.model(MODEL_ONE, COMMIT_ONE, model_files(MODEL_ONE))
    roles = ("airgap", "coredns", "registry", "serving", *(["operator"] if operator else []))
    for role in roles:
        draft.image(f"sovereign/{role}", layer=role.encode() * 30_000)
    draft.image("pause", "3.10", layer=b"pause")
    draft.chart()
    draft.chart("charts/sovereign-crds")
    if helm:
        helm_program = programs.place("helm", programs.folder / "brought")
        draft.file("bin/helm", helm_program.read_bytes())
    sign(draft.finish(), ANNA, WHEN)
    return draft.directory


@pytest.fixture
def bundle(tmp_path: Path, programs: SitePrograms) -> Path:
    return a_platform(tmp_path / "bundle", programs)


@pytest.fixture
def install(tmp_path: Path, bundle: Path, registry: RegistryDouble) -> Install:
    """Runs the verb; the registry that the cluster would run is the double."""
    key = tmp_path / "anna.pub"
    key.write_bytes(ANNA.public.pem())

    def installed(*more: str, path: Path = bundle) -> int:
        places = ("--work", str(tmp_path / "work"), "--certs-d", str(tmp_path / "certs.d"))
        writer = () if "--writer" in more else ("--writer", registry.host)
        return run(["install", str(path), "--key", str(key), *places, *writer, *more])

    return installed


def archive_of(reader: Directory, root: Root, names: tuple[str, ...]) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(archive(reader, root, names))))


# --- the archive


def test_an_image_becomes_an_archive_of_just_its_blobs(bundle: Path) -> None:
    root = a_root(bundle, "sovereign/registry")
    with archive_of(Directory(bundle), root, ("a/b@sha256:x", "a/b:v1")) as found:
        names = found.getnames()
        index = json.loads(found.extractfile("index.json").read())  # type: ignore[union-attr]
        for name in names:
            member = found.extractfile(name)
            if name.startswith("blobs/"):
                assert member is not None
                assert member.read() == (bundle / name).read_bytes()
    assert [one["annotations"]["io.containerd.image.name"] for one in index["manifests"]] == [
        "a/b@sha256:x",
        "a/b:v1",
    ]
    assert {one["digest"] for one in index["manifests"]} == {str(root.descriptor.digest)}
    assert len(names) == len(set(names)) == 5  # layout, index, manifest, config, layer


def test_a_damaged_layer_never_ends_a_whole_archive(bundle: Path) -> None:
    root = a_root(bundle, "sovereign/registry")
    blob = max((bundle / "blobs/sha256").iterdir(), key=lambda path: b"registry" in path.read_bytes()[:8])
    blob.write_bytes(b"R" + blob.read_bytes()[1:])
    sent = []
    with pytest.raises(DigestMismatch, match="copy the bundle again"):
        for piece in archive(Directory(bundle), root, ("a:b",)):
            sent.append(piece)
    assert not b"".join(sent).endswith(bytes(1024))


def test_an_image_that_a_delta_left_out_is_refused(bundle: Path) -> None:
    root = a_root(bundle, "sovereign/registry")
    blob = max((bundle / "blobs/sha256").iterdir(), key=lambda path: b"registry" in path.read_bytes()[:8])
    blob.unlink()
    with pytest.raises(BundleLacks, match="install from its base"):
        list(archive(Directory(bundle), root, ("a:b",)))


# --- the whole installation


def test_an_installation_brings_images_charts_and_the_bundle(
    install: Install, programs: SitePrograms, registry: RegistryDouble, tmp_path: Path, bundle: Path
) -> None:
    assert install() == 0
    images = {line.split()[0] for line in programs.kept("images")}
    operator = a_root(bundle, "sovereign/operator").descriptor.digest
    assert f"{NAME}/sovereign/operator@{operator}" in images
    assert {f"{NAME}/pause:3.10", "registry.example/pause:3.10"} <= images
    assert not any("serving" in image for image in images), "the registry serves what is large"
    assert {words[4] for words in programs.calls("ctr") if words[3] == "label"} == images
    assert programs.kept("namespaces") == ["sovereign-system", "models"]
    assert '"pod-security.kubernetes.io/enforce": "restricted"' in programs.kept("labels")[0]
    system, models = programs.kept("labels")
    assert "sovereign.dev/sealed" not in system, "the platform's own namespace has pods that nobody seals"
    assert '"sovereign.dev/sealed": "true"' in models
    releases = programs.calls("helm")
    assert [words[2] for words in releases] == ["sovereign-crds", "sovereign-operator"]
    assert Path(releases[1][3]).read_bytes() == b"chart 0.1.0"
    values = json.loads((tmp_path / "work/values.json").read_text())
    assert values["images"]["operator"] == f"{NAME}/sovereign/operator@{operator}"
    hosts = tmp_path / "certs.d" / NAME / "hosts.toml"
    assert hosts.read_text() == hosts_toml("10.96.7.7:5000", False)
    assert str(a_root(bundle, MODEL_ONE).descriptor.digest) in registry.tags.values()
    assert (tmp_path / "work/site/loaded.json").is_file()
    assert not (tmp_path / "work/docker-config.json").exists(), "the login does not stay"


def test_with_a_node_cache_the_platforms_pods_may_have_host_paths_and_models_may_not(
    install: Install, programs: SitePrograms, tmp_path: Path
) -> None:
    off, on = tmp_path / "off.yaml", tmp_path / "on.yaml"
    off.write_text("nodeCache: {enabled: false, budget: 1Ti}")
    on.write_text("nodeCache:\n  enabled: true\n")
    assert install("--values", str(off), "--values", str(on)) == 0
    system, models = (json.loads(text) for text in programs.kept("labels"))
    assert system["pod-security.kubernetes.io/enforce"] == "privileged"
    assert system["pod-security.kubernetes.io/warn"] == "restricted"
    assert models["pod-security.kubernetes.io/enforce"] == "restricted"


def test_values_that_are_no_yaml_are_refused_before_a_namespace_is_made(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("nodeCache: {")
    assert install("--values", str(broken), "--step", "namespaces") == 3
    assert f"YAML in {broken}" in capsys.readouterr().err
    assert programs.kept("namespaces") == []


def test_values_of_the_installation_are_those_that_the_load_writes(install: Install, tmp_path: Path) -> None:
    import yaml

    assert install() == 0
    written = yaml.safe_load((tmp_path / "work/site/values/sovereign-operator.yaml").read_text())
    assert written == json.loads((tmp_path / "work/values.json").read_text())


def test_a_second_installation_changes_nothing(
    install: Install, programs: SitePrograms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install() == 0
    imports = [words for words in programs.calls("ctr") if words[3] == "import"]
    created = [words for words in programs.calls("kubectl") if words[0] == "create"]
    capsys.readouterr()
    assert install() == 0
    assert [words for words in programs.calls("ctr") if words[3] == "import"] == imports
    assert [words for words in programs.calls("kubectl") if words[0] == "create"] == created
    said = capsys.readouterr().out
    assert "0 images were brought, 5 were there." in said
    assert "it was as it should be." in said


def test_single_steps_do_nothing_else(install: Install, programs: SitePrograms, tmp_path: Path) -> None:
    """As on every further node: images and hosts.toml, without kubectl."""
    assert install("--step", "images", "--step", "hosts", "--registry-address", "10.96.0.50:5000") == 0
    assert programs.calls("kubectl") == programs.calls("helm") == []
    assert "10.96.0.50:5000" in (tmp_path / "certs.d" / NAME / "hosts.toml").read_text()


def test_a_dry_run_prints_the_plan_and_changes_nothing(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(STEPS)
    assert not (programs.folder / "calls.jsonl").exists()
    assert not (tmp_path / "work").exists()


def test_parts_are_installed_without_joining_them(
    install: Install, programs: SitePrograms, bundle: Path, tmp_path: Path
) -> None:
    split(bundle, tmp_path / "parts", 20_000)
    assert install("--step", "images", path=tmp_path / "parts") == 0
    assert len({line.split()[2] for line in programs.kept("images")}) == 5


def test_the_pause_image_also_has_the_name_that_containerd_asks_for(
    install: Install, programs: SitePrograms
) -> None:
    assert install("--step", "images", "--sandbox-image", "registry.k8s.io/pause:3.10.1") == 0
    assert any(line.startswith("registry.k8s.io/pause:3.10.1 ") for line in programs.kept("images"))


def test_an_authority_is_placed_beside_hosts_toml(install: Install, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    assert install("--step", "hosts", "--ca", str(ca), "--registry-address", "registry.site:5000") == 0
    folder = tmp_path / "certs.d" / NAME
    assert (folder / "ca.crt").read_bytes() == ca.read_bytes()
    assert (folder / "hosts.toml").read_text() == hosts_toml("registry.site:5000", True)


# --- refusals, each one sentence


def test_an_unsigned_bundle_is_refused_before_any_step(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = tmp_path / "bert.pub"
    bert.write_bytes(BERT.public.pem())
    assert install("--key", str(bert), "--threshold", "2") == 3
    assert "NotSigned: " in capsys.readouterr().err
    assert not (programs.folder / "calls.jsonl").exists()


def test_a_damaged_bundle_is_refused_before_anything_is_installed(
    install: Install, bundle: Path, programs: SitePrograms
) -> None:
    blob = max((bundle / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert install() == 3
    assert not (programs.folder / "calls.jsonl").exists()


def test_a_program_that_is_nowhere_is_named(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = a_platform(tmp_path / "without", programs, helm=False)
    assert install("--step", "crds", path=without) == 1
    said = capsys.readouterr().err
    assert said.startswith("ProgramMissing: Expected helm on PATH or in the bundle as bin/helm")


def test_a_program_that_fails_is_quoted(
    install: Install, programs: SitePrograms, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.answer(fails=["ctr"])
    assert install("--step", "images") == 1
    assert "ctr was told to fail" in capsys.readouterr().err


def test_an_address_that_is_none_is_not_written(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.answer(address="None")
    assert install("--step", "hosts") == 1
    assert "--registry-address" in capsys.readouterr().err
    assert not (tmp_path / "certs.d").exists()


def test_a_missing_image_of_the_chart_is_told(
    install: Install, programs: SitePrograms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install("--step", "chart", path=a_platform(tmp_path / "other", programs, operator=False)) == 0
    assert "images.operator of the chart sovereign-operator is not set" in capsys.readouterr().out


def test_a_bundle_without_charts_is_no_platform(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = Draft(tmp_path / "models-only")
    draft.image()
    sign(draft.finish(), ANNA, WHEN)
    assert install(path=draft.directory) == 3
    assert "BundleLacks: Expected one chart sovereign-crds" in capsys.readouterr().err


def test_the_writer_is_reached_through_a_forwarded_port_where_nothing_answers(
    programs: SitePrograms, bundle: Path, tmp_path: Path
) -> None:
    from sovereign_airgap.bundle.index import Index
    from sovereign_airgap.install.cluster import WRITER, Cluster
    from sovereign_airgap.install.platform import Platform
    from sovereign_airgap.install.programs import Programs

    programs.answer(address="127.0.0.1", forwarded="40123")
    platform = Platform(open_bundle(bundle), Index.parse((bundle / "index.json").read_bytes()), NAME)
    with Cluster(Programs(platform, tmp_path), "sovereign-system").way_to(WRITER) as address:
        assert address == "127.0.0.1:40123"
