# SPDX-License-Identifier: Apache-2.0
"""The node: registry, containerd, kubelet and kube-proxy on this machine as root, and cluster DNS as a pod.

Beside it two doubles: one enforces network policies (dev.policy), one is the world outside (dev.outside).

One node cluster at a time on a machine (the bridge, the pod range and kube-proxy's tables have one owner);
control planes without a node may run beside it in any number.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dev import outside, policy
from dev.binaries import binary
from dev.cluster import control_plane, dns, network, runtime, shelf
from dev.cluster.control_plane import ENVIRONMENT, free_port, kubeconfig_of
from dev.cluster.errors import ClusterError
from dev.cluster.process import awaited
from dev.cluster.state import DNS_SERVICE_IP, DOMAIN, KUBELET_PORT, NODE_IP, NODE_NAME, POD_CIDR, Cluster

# Ended in this order: nobody restarts what was ended before it, and no pod runs without its policies.
PROCESSES = ("kubelet", "kube-proxy", "containerd", "image-registry", policy.PROCESS, outside.PROCESS)
# Stands for the accelerator: the scheduler counts it and the product label pins workers, as on real nodes.
ACCELERATORS = {"sovereign.dev/accelerator": "8"}
LABELS = {"sovereign.dev/accelerator-product": "Embedded-CPU"}
READY_SECONDS = 180.0

# Program -> Debian package, for the sentence that says what is missing.
TOOLS = {
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "umount": "util-linux",
    "nsenter": "util-linux",
}
# The kubelet sets these and never sets them back; `down` does.
_TUNABLES = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
# Where a kubelet writes outside its own folder, whatever it is told.
_CONTAINER_LOGS = Path("/var/log/containers")
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def impossible() -> str | None:
    """Why this machine cannot run a node, as a sentence; None where it can."""
    if sys.platform != "linux":
        return (
            "A node needs Linux; use the control plane alone (no --node), or CLUSTER=kind where Docker runs."
        )
    if os.geteuid() != 0:
        return "A node needs root (containers, links, nftables); run as root, or leave --node out."
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        return f"A node needs {', '.join(missing)}; run dev/bootstrap.sh, or `apt-get install {packages}`."
    return None


def refuse_where_impossible() -> None:
    if reason := impossible():
        raise ClusterError(reason)


def prepare(cluster: Cluster, report: Callable[[str], None], policies: bool | None = None) -> None:
    """Before the control plane: claim the machine, and clean what a crash has left if containerd is gone.

    `policies` chooses whether the node enforces network policies; None keeps what was chosen before.
    """
    refuse_where_impossible()
    outside.refuse_where_taken()
    network.claim(cluster)
    runtime.folder(cluster).mkdir(parents=True, exist_ok=True, mode=0o700)
    containerd = cluster.processes.find("containerd")
    if containerd is None or not containerd.alive:
        report("cleaning leftovers")
        for name in PROCESSES:
            cluster.processes.end(name)
        runtime.remove_containers(cluster)
        outside.clean(cluster)
        shelf.take(cluster)
    if policies is not None:
        policy.choose(cluster, policy.Wanted(enforced=policies))
    _record_tunables(cluster)


def start(cluster: Cluster, report: Callable[[str], None]) -> Cluster:
    """Start what does not run; return when the node is Ready, carries its accelerators, and DNS answers."""
    network.set_up(cluster)
    outside.start(cluster)
    cluster = _with_registry_port(cluster)
    runtime.start_registry(cluster)
    policy.resume(cluster)
    report("containerd")
    runtime.start_containerd(cluster)
    report("kubelet and kube-proxy")
    _start_kubelet(cluster)
    _start_kube_proxy(cluster)
    _await(cluster, lambda: _ready(cluster), "the node does not become Ready")
    _advertise(cluster)
    report("cluster DNS")
    dns.install(cluster)
    _await(cluster, lambda: dns.answers(cluster), "cluster DNS does not answer")
    return cluster


def stop(cluster: Cluster) -> None:
    """End the node's processes and its pods, and put the machine back as it was; harmless when repeated."""
    starters, storage = PROCESSES[:2], PROCESSES[2:4]
    for name in starters:
        cluster.processes.end(name)
    reusable = shelf.empty(cluster)
    for name in storage:
        cluster.processes.end(name)
    runtime.remove_containers(cluster)
    if reusable:
        shelf.put_back(cluster)
    policy.stop(cluster)
    outside.stop(cluster)
    network.tear_down(cluster)
    for link in _CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and cluster.state_dir in link.readlink().parents:
            link.unlink()
    (_DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    for path in (_CONTAINER_LOGS, _DEVICE_PLUGINS, _DEVICE_PLUGINS.parent):
        with contextlib.suppress(OSError):  # not there, or something of somebody else is in it
            path.rmdir()
    _restore_tunables(cluster)


def _with_registry_port(cluster: Cluster) -> Cluster:
    settings = replace(cluster.settings, registry_port=cluster.settings.registry_port or free_port())
    cluster = replace(cluster, settings=settings)
    cluster.save()
    return cluster


def _start_kubelet(cluster: Cluster) -> None:
    base = runtime.folder(cluster)
    resolver = base / "resolv.conf"
    resolver.write_text(
        "# Pods with dnsPolicy Default get no resolver: the machine's own would be a way out.\n"
    )
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "port": KUBELET_PORT,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(cluster.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{runtime.socket(cluster)}",
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": DOMAIN,
        "resolvConf": str(resolver),
        # Works on cgroups v1 and v2, and with or without systemd: limits hold for each container.
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        # A developer's disk is rarely empty: neither evict pods for it nor collect the images they need.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "oomScoreAdj": 0,
        "serializeImagePulls": False,
        "runtimeRequestTimeout": "15m",
        "podLogsDir": str(base / "pod-logs"),
        "volumePluginDir": str(base / "volume-plugins"),
    }
    path = base / "kubelet.json"
    path.write_text(json.dumps(config, indent=1))
    cluster.processes.start(
        "kubelet",
        [
            str(binary("kubelet")),
            f"--config={path}",
            f"--kubeconfig={kubeconfig_of(cluster, 'kubelet')}",
            f"--root-dir={base / 'kubelet'}",
            f"--cert-dir={base / 'kubelet-pki'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in LABELS.items())}",
        ],
        ENVIRONMENT,
    )


def _start_kube_proxy(cluster: Cluster) -> None:
    cluster.processes.start(
        "kube-proxy",
        [
            str(binary("kube-proxy")),
            f"--kubeconfig={kubeconfig_of(cluster, 'kube-proxy')}",
            f"--hostname-override={NODE_NAME}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_CIDR}",
            # Pods share one bridge: an answer must come back through this machine to be translated back.
            "--masquerade-all",
            f"--nodeport-addresses={NODE_IP}/32",
            f"--healthz-bind-address=127.0.0.1:{free_port()}",
            f"--metrics-bind-address=127.0.0.1:{free_port()}",
            "--oom-score-adj=0",
            # Leave the machine's connection tracking as it is.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
        ENVIRONMENT,
    )


def _ready(cluster: Cluster) -> bool:
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    done = subprocess.run(
        [*cluster.kubectl, "get", "node", NODE_NAME, "-o", f"jsonpath={path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() == "True"


def _advertise(cluster: Cluster) -> None:
    """What a device plugin would do on a real node; the kubelet keeps resources that it does not know."""
    patch = json.dumps({"status": {"capacity": ACCELERATORS, "allocatable": ACCELERATORS}})
    subprocess.run(
        [*cluster.kubectl, "patch", "node", NODE_NAME, "--subresource=status", "--type=merge", "-p", patch],
        capture_output=True,
        text=True,
        check=True,
    )


def _await(cluster: Cluster, condition: Callable[[], bool], complaint: str) -> None:
    def done() -> bool:
        for name in (*control_plane.ENDING_ORDER, *PROCESSES):
            if (process := cluster.processes.find(name)) and not process.alive:
                raise ClusterError(f"{name} ended; its last words in {process.log}:\n{process.last_words()}")
        return condition()

    if not awaited(done, READY_SECONDS, interval=0.3):
        raise ClusterError(f"After {READY_SECONDS:.0f} s {complaint}; see {cluster.state_dir / 'logs'}.")


def _record_tunables(cluster: Cluster) -> None:
    record = runtime.folder(cluster) / "tunables.json"
    if not record.exists():
        values = {name: (Path("/proc/sys") / name).read_text().strip() for name in _TUNABLES}
        record.write_text(json.dumps(values))


def _restore_tunables(cluster: Cluster) -> None:
    record = runtime.folder(cluster) / "tunables.json"
    if record.exists():
        for name, value in json.loads(record.read_text()).items():
            (Path("/proc/sys") / name).write_text(value)
        record.unlink()
