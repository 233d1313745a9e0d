# SPDX-License-Identifier: Apache-2.0
"""The stand-in speaks as KubeRay's service account, which it makes first with the administrator's rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dev.kuberay import identity
from dev.kuberay.api import Api
from dev.kuberay.controller import Controller

Request = tuple[str, str, str | None]


class Server:
    """Says yes to everything, and remembers (method, path, who was impersonated)."""

    def __init__(self, folder: Path) -> None:
        seen = self.requests = list[Request]()

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"apiVersion": "v1", "items": []})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, document: object) -> None:
                seen.append((self.command, self.path.partition("?")[0], self.headers["Impersonate-User"]))
                text = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.http.daemon_threads = True
        self.kubeconfig = folder / "kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self.http.server_address[1]}"}
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    thread = Thread(target=made.http.serve_forever, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_the_account_exists_before_the_first_request_in_its_name(server: Server) -> None:
    kubeconfig = str(server.kubeconfig)
    controller = Controller(Api(kubeconfig, identity.USER), Api(kubeconfig))
    controller.install()
    controller.round()
    made = [path for method, path, user in server.requests if method == "POST" and user is None]
    assert made[:3] == [
        "/api/v1/namespaces",
        "/api/v1/namespaces/kuberay-system/serviceaccounts",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    ]
    rounds = [request for request in server.requests if request[0] == "GET"]
    assert rounds
    assert {user for _method, _path, user in rounds} == {
        "system:serviceaccount:kuberay-system:kuberay-operator"
    }
