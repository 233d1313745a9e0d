# SPDX-License-Identifier: Apache-2.0
"""A registry that holds model artifacts in memory: a test double of the read-only listener, on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from sovereign_airgap.digest import Digest
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.facts import ModelFacts, shape_of
from sovereign_airgap.manifest import (
    CONFIG_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    WEIGHT_CONFIG_TYPE,
    WEIGHT_TYPE,
    Descriptor,
    Layer,
    ModelManifest,
    fallback_tag,
)
from sovereign_airgap.signing import referrer

TINY = {
    "architectures": ["MixtralForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
}


class RegistryDouble:
    """`publish` does what a mirror does at its end; `requests` are all that came."""

    def __init__(self) -> None:
        self.content: dict[str, tuple[str, bytes]] = {}
        self.claims: dict[str, str] = {}
        self.requests: list[str] = []
        self.down = False
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(True)

            def do_HEAD(self) -> None:
                self._answer(False)

            def _answer(self, with_body: bool) -> None:
                double.requests.append(f"{self.command} {self.path}")
                kind, body = double.content.get(self.path, ("text/plain", b"no such thing"))
                status = 200 if self.path in double.content else 404
                if double.down:
                    status, body = 503, b"down"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Docker-Content-Digest", double.claims.get(self.path, str(Digest.of(body))))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> RegistryDouble:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, repository: str, tag: str, manifest: bytes) -> str:
        """Any manifest under a tag and its digest."""
        digest = str(Digest.of(manifest))
        for name in (tag, digest):
            self.content[f"/v2/{repository}/manifests/{name}"] = (MANIFEST_TYPE, manifest)
        return digest

    def lie(self, path: str, digest: str) -> None:
        """From now on other bytes come back under this digest, as from a bad disk."""
        kind, body = self.content[path]
        self.content[path] = (kind, body + b" ")
        self.claims[path] = digest

    def publish(self, repository: str, revision: str, facts_of: dict[str, object] | None = None) -> str:
        """A small model at this commit, with its facts (or those of another config); answers its digest."""
        text = json.dumps(TINY).encode()
        weights = Layer("model.safetensors", Digest.of(revision.encode()), 5_000_000, WEIGHT_TYPE)
        settings = Layer("config.json", Digest.of(text), len(text), WEIGHT_CONFIG_TYPE)
        manifest = ModelManifest(
            config=Descriptor.of(CONFIG_TYPE, b"{}"),
            layers=(settings, weights),
            source=f"hf://{repository.removeprefix('models/')}",
            revision=revision,
        ).encode()
        digest = Digest.of(manifest)
        base = f"/v2/{repository}"
        self.content[f"{base}/blobs/{settings.digest}"] = ("application/octet-stream", text)
        self.content[f"{base}/manifests/{digest}"] = (MANIFEST_TYPE, manifest)
        self._facts(base, digest, json.dumps(facts_of or TINY).encode())
        self.content[f"{base}/manifests/{revision}"] = (MANIFEST_TYPE, manifest)
        return str(digest)

    def sign(self, reference: str, envelope: bytes, key_id: str) -> None:
        """Puts a signature beside an artifact, as `sovereign-airgap sign` does."""
        repository, _, digest = reference.partition("@")
        subject = Digest.parse(digest)
        base = f"/v2/{repository}"
        described = Descriptor(MANIFEST_TYPE, subject, len(self.content[f"{base}/manifests/{digest}"][1]))
        manifest = referrer.encode(described, envelope, key_id)
        self.content[f"{base}/blobs/{Digest.of(envelope)}"] = ("application/octet-stream", envelope)
        self.content[f"{base}/manifests/{Digest.of(manifest)}"] = (MANIFEST_TYPE, manifest)
        self._list(base, subject, referrer.SIGNATURE_TYPE, manifest)

    def _facts(self, base: str, subject: Digest, config: bytes) -> None:
        shape = shape_of(json.loads(config))
        facts = ModelFacts(
            architectures=shape.architectures,
            architecture=shape.architectures[0],
            dtype=shape.dtype,
            layers=shape.layers,
            hidden_size=shape.hidden_size,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            vocab_size=shape.vocab_size,
            experts=shape.experts,
            experts_per_token=shape.experts_per_token,
            max_position_embeddings=shape.max_position_embeddings,
            kv_bytes_per_token=shape.kv_bytes_per_token,
            parameters=1_800_000,
            bytes_total=5_000_000,
            bytes_experts=4_000_000,
        )
        blob = json.dumps(facts.as_json()).encode()
        manifest = json.dumps({"layers": [{"digest": str(Digest.of(blob))}]}).encode()
        self.content[f"{base}/blobs/{Digest.of(blob)}"] = ("application/octet-stream", blob)
        self.content[f"{base}/manifests/{Digest.of(manifest)}"] = (MANIFEST_TYPE, manifest)
        self._list(base, subject, FACTS_TYPE, manifest)

    def _list(self, base: str, subject: Digest, artifact_type: str, manifest: bytes) -> None:
        """Under the fallback tag; what is listed already stays once."""
        tag = f"{base}/manifests/{fallback_tag(subject)}"
        _, listed = self.content.get(tag, (INDEX_TYPE, b'{"manifests": []}'))
        entry = {"artifactType": artifact_type, "digest": str(Digest.of(manifest))}
        others = [other for other in json.loads(listed)["manifests"] if other != entry]
        self.content[tag] = (INDEX_TYPE, json.dumps({"manifests": [*others, entry]}).encode())
