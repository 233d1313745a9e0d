# SPDX-License-Identifier: Apache-2.0
"""etcd, API server, controller manager and scheduler as plain processes on loopback; needs no root."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dev.binaries import binary
from dev.cluster.errors import ClusterError
from dev.cluster.process import Process, awaited
from dev.cluster.state import API_SERVICE_IP, NODE_IP, NODE_NAME, POD_CIDR, SERVICE_CIDR, Cluster

READY_SECONDS = 90.0
# Ended in this order: an API server without etcd waits for it, and never the other way round.
ENDING_ORDER = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")

# Who may present a static token: file name of the kubeconfig -> (user, groups).
IDENTITIES = {
    "admin": ("embedded-admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE_NAME}", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
}
# Tests read from the log who asked for what in which order; heartbeats would only make it long.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
        {"level": "None", "nonResourceURLs": ["*"]},
        {"level": "Metadata"},
    ],
}
# Nothing here talks to anything but this machine; a proxy from the environment would only be in the way.
ENVIRONMENT = {"NO_PROXY": "*", "no_proxy": "*"}


def start(cluster: Cluster) -> Cluster:
    """Bring all four up, return when the API answers and controllers work; what runs already is kept."""
    cluster.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_identities(cluster)
    cluster.processes.forget_dead(ENDING_ORDER)
    for attempt in range(3):
        cluster = _with_ports(cluster)
        try:
            _start_etcd(cluster)
            _start_api_server(cluster)
            _write_kubeconfigs(cluster)
            _start_controllers(cluster)
            _await_working(cluster)
        except _PortTaken:
            # Another process was quicker between our choosing the port and the server's binding it.
            stop(cluster)
            settings = replace(cluster.settings, api_port=0, etcd_port=0, etcd_peer_port=0)
            cluster = replace(cluster, settings=settings)
            if attempt == 2:
                raise
        else:
            return cluster
    raise AssertionError("unreachable")


def stop(cluster: Cluster) -> None:
    for name in ENDING_ORDER:
        cluster.processes.end(name)


def healthy(cluster: Cluster) -> bool:
    return _get(cluster, "/readyz") is not None


class _PortTaken(ClusterError):
    pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _with_ports(cluster: Cluster) -> Cluster:
    """Keep the ports of earlier runs, so that a kubeconfig stays valid; choose the missing ones."""
    known = cluster.settings
    settings = replace(
        known,
        api_port=known.api_port or free_port(),
        etcd_port=known.etcd_port or free_port(),
        etcd_peer_port=known.etcd_peer_port or free_port(),
    )
    cluster = replace(cluster, settings=settings)
    cluster.save()
    return cluster


def _write_identities(cluster: Cluster) -> None:
    """Certificates and tokens, made once for the life of the cluster."""
    if (cluster.pki / "tokens.csv").exists():
        return
    cluster.pki.mkdir(mode=0o700, exist_ok=True)
    addresses = ["127.0.0.1", NODE_IP, API_SERVICE_IP]
    subprocess.run([str(binary("kube")), "certificates", str(cluster.pki), *addresses], check=True)
    lines = [
        f'{secrets.token_hex(16)},{user},{name},"{groups}"'
        for name, (user, groups) in sorted(IDENTITIES.items())
    ]
    tokens = cluster.pki / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text("\n".join(lines) + "\n")


def token(cluster: Cluster, identity: str) -> str:
    for line in (cluster.pki / "tokens.csv").read_text().splitlines():
        value, _user, name, _groups = line.split(",")
        if name == identity:
            return value
    raise KeyError(identity)


def kubeconfig_of(cluster: Cluster, identity: str) -> Path:
    return cluster.kubeconfig if identity == "admin" else cluster.pki / f"{identity}.kubeconfig"


def _write_kubeconfigs(cluster: Cluster) -> None:
    authority = base64.b64encode((cluster.pki / "ca.crt").read_bytes()).decode()
    name = f"sovereign-{cluster.name}"
    for identity in IDENTITIES:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": name, "cluster": {"server": cluster.server, "certificate-authority-data": authority}}
            ],
            "users": [{"name": identity, "user": {"token": token(cluster, identity)}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": identity}}],
            "current-context": name,
        }
        path = kubeconfig_of(cluster, identity)
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1) + "\n")


def _start_etcd(cluster: Cluster) -> None:
    client = f"http://127.0.0.1:{cluster.settings.etcd_port}"
    peer = f"http://127.0.0.1:{cluster.settings.etcd_peer_port}"
    cluster.processes.start(
        "etcd",
        [
            str(binary("etcd")),
            f"--data-dir={cluster.state_dir / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        ENVIRONMENT,
    )


def _start_api_server(cluster: Cluster) -> None:
    pki = cluster.pki
    policy = cluster.state_dir / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    arguments = [
        f"--etcd-servers=http://127.0.0.1:{cluster.settings.etcd_port}",
        f"--secure-port={cluster.api_port}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        f"--service-account-key-file={pki / 'service-account.key'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={cluster.audit_log}",
        "--audit-log-maxsize=500",
    ]
    if cluster.settings.node:
        # Pods reach the API at the node's address; the guard rules keep the port from other machines.
        arguments += ["--bind-address=0.0.0.0", f"--advertise-address={NODE_IP}"]
    else:
        # There are no pods: nobody needs the service's endpoint, and nobody outside needs the port.
        arguments += [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
        ]
    cluster.processes.start("kube-apiserver", [str(binary("kube-apiserver")), *arguments], ENVIRONMENT)


def _start_controllers(cluster: Cluster) -> None:
    pki = cluster.pki
    quiet = ["--leader-elect=false", "--secure-port=0", "--profiling=false"]
    _await(cluster, lambda: _get(cluster, "/readyz") is not None, "the API server does not become ready")
    cluster.processes.start(
        "kube-controller-manager",
        [
            str(binary("kube-controller-manager")),
            f"--kubeconfig={kubeconfig_of(cluster, 'kube-controller-manager')}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            f"--service-account-private-key-file={pki / 'service-account.key'}",
            f"--cluster-cidr={POD_CIDR}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--allocate-node-cidrs=false",
            "--use-service-account-credentials",
            *quiet,
        ],
        ENVIRONMENT,
    )
    cluster.processes.start(
        "kube-scheduler",
        [str(binary("kube-scheduler")), f"--kubeconfig={kubeconfig_of(cluster, 'kube-scheduler')}", *quiet],
        ENVIRONMENT,
    )


def _await_working(cluster: Cluster) -> None:
    """Controllers work when the default namespace has its service account: only then can pods be created."""
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    _await(cluster, lambda: _get(cluster, account) is not None, "the controller manager does not work")


def _await(cluster: Cluster, condition: Callable[[], bool], complaint: str) -> None:
    def done() -> bool:
        _refuse_dead(cluster)
        return condition()

    if not awaited(done, READY_SECONDS, interval=0.1):
        raise ClusterError(f"After {READY_SECONDS:.0f} s {complaint}; see {cluster.state_dir / 'logs'}.")


def _refuse_dead(cluster: Cluster) -> None:
    for process in cluster.processes.all():
        if process.name in ENDING_ORDER and not process.alive:
            raise _complaint(process)


def _complaint(process: Process) -> ClusterError:
    words = process.last_words()
    kind = _PortTaken if "address already in use" in words else ClusterError
    return kind(f"{process.name} ended at its start; its last words in {process.log}:\n{words}")


def _get(cluster: Cluster, path: str) -> bytes | None:
    """The body of a GET as admin, None when the API server does not answer with success."""
    request = urllib.request.Request(
        cluster.server + path, headers={"Authorization": f"Bearer {token(cluster, 'admin')}"}
    )
    context = ssl.create_default_context(cafile=str(cluster.pki / "ca.crt"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=5) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return None
