# SPDX-License-Identifier: Apache-2.0
"""A small hub folder and the hub double over it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from dev.hub import HubServer

FILES = {
    "config.json": b'{"architectures": ["TinyForCausalLM"]}',
    "model.safetensors": bytes(range(256)) * 41,
    "notes/deep/er.txt": b"one\n",
    "notes.txt": b"sorts between notes and notes/ in git's eyes\n",
    "README.md": b"# Tiny\n",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, body in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    write(folder / "acme/tiny", FILES)
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


@pytest.fixture
def client(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., HfApi]:
    """The real client, bound to the double; its cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def make(token: str | None = None) -> HfApi:
        return HfApi(endpoint=hub.endpoint, token=token or False)

    return make
