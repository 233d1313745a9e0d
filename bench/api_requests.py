# SPDX-License-Identifier: Apache-2.0
"""What an API server was asked, from its own counters: independent of who asks and of what they say."""

import re
import subprocess
from collections import Counter
from collections.abc import Sequence

# Nothing but the operator (and this benchmark's own lists) touches these on a cluster without a node.
OURS = frozenset(
    {"sovereignmodels", "rayservices", "rayclusters", "networkpolicies", "jobs", "pods", "secrets", "events"}
)
READS = frozenset({"GET", "LIST", "WATCH"})
_LINE = re.compile(r"apiserver_request_total\{(?P<labels>[^}]*)\} (?P<count>[0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Requests = Counter[tuple[str, str]]
"""(verb, resource/subresource) -> how many, since the server's start."""


def snapshot(kubectl: Sequence[str]) -> Requests:
    told = subprocess.run(
        [*kubectl, "get", "--raw", "/metrics"], capture_output=True, text=True, check=True
    ).stdout
    requests: Requests = Counter()
    for line in _LINE.finditer(told):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels["resource"] in OURS:
            what = labels["resource"] + (f"/{labels['subresource']}" if labels["subresource"] else "")
            requests[labels["verb"], what] += int(float(line["count"]))
    return requests


def writes(requests: Requests) -> Requests:
    return Counter({key: count for key, count in requests.items() if key[0] not in READS and count})


def reads(requests: Requests) -> Requests:
    """GETs only: the benchmark lists, and watches are counted when they end."""
    return Counter({key: count for key, count in requests.items() if key[0] == "GET" and count})
