# SPDX-License-Identifier: Apache-2.0
"""What the operator has in its own namespace: Jobs of mirrors, of fetches to nodes and of a probe's
control, with their pods, and the policies that let a mirror out.

kopf watches every kind in every namespace that it serves, and would need rights on models here. Watches of
our own keep the roles apart: this namespace has what is not sealed, the others have models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from sovereign_operator.api import COMPONENT_CONTROL, COMPONENT_FETCH, COMPONENT_MIRROR, LABEL_COMPONENT
from sovereign_operator.cluster import JOB, NETWORK_POLICY, POD, Cluster, ClusterError, Kind
from sovereign_operator.fetches import fetch_key
from sovereign_operator.indices import Key, owner_of, plain
from sovereign_operator.values import Manifest
from sovereign_operator.workqueue import backoff
from sovereign_operator.world import component_of

logger = logging.getLogger(__name__)

Changed = Callable[[Key], None]

# Each of these belongs to one model.
OWN: Final = (COMPONENT_CONTROL, COMPONENT_MIRROR)


class Shelf(Mapping[Key, Iterable[Manifest]]):
    """The objects of one kind by the key that they belong to: a model's, unless said otherwise."""

    def __init__(self, key_of: Callable[[Mapping[str, Any]], Key] = owner_of) -> None:
        self._key_of = key_of
        self._keys: dict[str, Key] = {}  # by uid
        self._objects: dict[Key, dict[str, Manifest]] = {}

    def put(self, body: Manifest) -> Key:
        uid, key = body["metadata"]["uid"], self._key_of(body)
        self._remove(uid)
        self._keys[uid] = key
        self._objects.setdefault(key, {})[uid] = body
        return key

    def drop(self, body: Manifest) -> Key:
        self._remove(body["metadata"]["uid"])
        return self._key_of(body)

    def replace(self, bodies: Iterable[Manifest]) -> set[Key]:
        """Everything anew; answers the keys that anything was or is known of."""
        before = set(self)
        self._keys, self._objects = {}, {}
        for body in bodies:
            self.put(body)
        return before | set(self)

    def _remove(self, uid: str) -> None:
        key = self._keys.pop(uid, None)
        if key is not None:
            self._objects[key].pop(uid)
            if not self._objects[key]:
                del self._objects[key]

    def __getitem__(self, key: Key) -> Iterable[Manifest]:
        return list(self._objects[key].values())

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._objects))

    def __len__(self) -> int:
        return len(self._objects)


class SystemWatch:
    """Keeps the shelves current and reports the keys of models whose Jobs changed, and of shared ones."""

    def __init__(
        self, cluster: Cluster, namespace: str, changed: Changed, shared_changed: Changed = lambda key: None
    ) -> None:
        self.jobs, self.pods, self.exceptions = Shelf(), Shelf(), Shelf()
        # Of no one model: by namespace and digest.
        self.fetch_jobs, self.fetch_pods = Shelf(fetch_key), Shelf(fetch_key)
        self._cluster = cluster
        self._namespace = namespace
        self._changed, self._shared_changed = changed, shared_changed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside this block all shelves are complete and followed."""
        followed = (
            (JOB, self.jobs, self.fetch_jobs),
            (POD, self.pods, self.fetch_pods),
            (NETWORK_POLICY, self.exceptions, None),
        )
        listed = [asyncio.Event() for _ in followed]
        tasks = [
            asyncio.create_task(self._follow(kind, own, shared, complete), name=f"watch-{kind.plural}")
            for (kind, own, shared), complete in zip(followed, listed, strict=True)
        ]
        try:
            for complete in listed:
                await complete.wait()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, kind: Kind, own: Shelf, shared: Shelf | None, complete: asyncio.Event) -> None:
        components = (*OWN, COMPONENT_FETCH) if shared is not None else OWN
        selector = f"{LABEL_COMPONENT} in ({','.join(components)})"
        failures = 0
        while True:
            try:
                async for event, body in self._cluster.follow(kind, self._namespace, selector):
                    failures = 0
                    if event == "LISTED":
                        self._list([plain(each) for each in body], own, shared)
                        complete.set()
                    elif shared is not None and component_of(body) == COMPONENT_FETCH:
                        self._shared_changed(self._take(shared, event, body))
                    else:
                        self._changed(self._take(own, event, body))
            except ClusterError as error:
                failures += 1
                wait = backoff(failures, 0.0, last=60.0)
                logger.warning("watching %s failed: %s; next try in %.0f s", kind.plural, error, wait)
                await asyncio.sleep(wait)

    def _list(self, bodies: list[Manifest], own: Shelf, shared: Shelf | None) -> None:
        of_fetches = [body for body in bodies if component_of(body) == COMPONENT_FETCH]
        for key in own.replace(body for body in bodies if component_of(body) != COMPONENT_FETCH):
            self._changed(key)
        for key in shared.replace(of_fetches) if shared is not None else ():
            self._shared_changed(key)

    @staticmethod
    def _take(shelf: Shelf, event: str, body: Any) -> Key:
        return shelf.drop(body) if event == "DELETED" else shelf.put(plain(body))
