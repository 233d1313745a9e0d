# SPDX-License-Identifier: Apache-2.0
"""What the operator has in its own namespace: Jobs of mirrors and of a probe's control, with their pods, and
the policies that let a mirror out.

kopf watches every kind in every namespace that it serves, and would need rights on models here. Watches of
our own keep the roles apart: this namespace has what is not sealed, the others have models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from sovereign_operator.api import COMPONENT_CONTROL, COMPONENT_MIRROR, LABEL_COMPONENT
from sovereign_operator.cluster import JOB, NETWORK_POLICY, POD, Cluster, ClusterError, Kind
from sovereign_operator.indices import Key, owner_of, plain
from sovereign_operator.values import Manifest
from sovereign_operator.workqueue import backoff

logger = logging.getLogger(__name__)

SELECTOR: Final = f"{LABEL_COMPONENT} in ({COMPONENT_CONTROL},{COMPONENT_MIRROR})"


class Shelf(Mapping[Key, Iterable[Manifest]]):
    """The objects of one kind by the model that they belong to."""

    def __init__(self) -> None:
        self._objects: dict[str, Manifest] = {}

    def put(self, body: Manifest) -> Key:
        self._objects[body["metadata"]["uid"]] = body
        return owner_of(body)

    def drop(self, body: Manifest) -> Key:
        self._objects.pop(body["metadata"]["uid"], None)
        return owner_of(body)

    def replace(self, bodies: list[Manifest]) -> set[Key]:
        """Everything anew; answers the models that anything was or is known of."""
        before = set(self)
        self._objects = {body["metadata"]["uid"]: body for body in bodies}
        return before | set(self)

    def __getitem__(self, key: Key) -> Iterable[Manifest]:
        found = [body for body in self._objects.values() if owner_of(body) == key]
        if not found:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        return iter({owner_of(body) for body in self._objects.values()})

    def __len__(self) -> int:
        return len(set(self))


class MirrorWatch:
    """Keeps the shelves current and reports the keys whose mirror changed."""

    def __init__(self, cluster: Cluster, namespace: str, changed: Callable[[Key], None]) -> None:
        self.jobs, self.pods, self.exceptions = Shelf(), Shelf(), Shelf()
        self._cluster = cluster
        self._namespace = namespace
        self._changed = changed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside this block all shelves are complete and followed."""
        shelves = ((JOB, self.jobs), (POD, self.pods), (NETWORK_POLICY, self.exceptions))
        listed = [asyncio.Event() for _ in shelves]
        tasks = [
            asyncio.create_task(self._follow(kind, shelf, complete), name=f"watch-{kind.plural}")
            for (kind, shelf), complete in zip(shelves, listed, strict=True)
        ]
        try:
            for complete in listed:
                await complete.wait()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, kind: Kind, shelf: Shelf, complete: asyncio.Event) -> None:
        failures = 0
        while True:
            try:
                async for event, body in self._cluster.follow(kind, self._namespace, SELECTOR):
                    failures = 0
                    self._take(shelf, event, body)
                    if event == "LISTED":
                        complete.set()
            except ClusterError as error:
                failures += 1
                wait = backoff(failures, 0.0, last=60.0)
                logger.warning("watching %s failed: %s; next try in %.0f s", kind.plural, error, wait)
                await asyncio.sleep(wait)

    def _take(self, shelf: Shelf, event: str, body: Any) -> None:
        if event == "LISTED":
            for key in shelf.replace([plain(each) for each in body]):
                self._changed(key)
        elif event == "DELETED":
            self._changed(shelf.drop(body))
        else:
            self._changed(shelf.put(plain(body)))
