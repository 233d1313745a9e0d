# SPDX-License-Identifier: Apache-2.0
"""What was downloaded from the site's registry, as its own access log tells."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from dev.kubectl import Kubectl
from dev.stack import SYSTEM

# Mirror Jobs read back what they wrote, through the writer's port.
READER_PORT = ":5000"
DATA_PLANE = "sovereign-airgap"


def blobs_fetched(kubectl: Kubectl) -> dict[str, int]:
    """Path of a blob -> how often the data plane downloaded it from the reader, since the registry began."""
    said = kubectl("-n", SYSTEM, "logs", "deployment/sovereign-registry", "--all-containers")
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return dict(Counter(str(one["http.request.uri"]) for one in answers if _is_download(one)))


def _is_download(answer: dict[str, Any]) -> bool:
    return (
        "http.response.status" in answer
        and answer.get("http.request.method") == "GET"
        and "/blobs/sha256:" in answer["http.request.uri"]
        and answer["http.request.host"].endswith(READER_PORT)
        and answer.get("http.request.useragent") == DATA_PLANE
    )
