# SPDX-License-Identifier: Apache-2.0
"""The only module that talks to Kubernetes: plain dictionaries in and out, errors as types of the domain.

Reads that reconcile needs to be sure of are live GETs; everything else comes from the watches. Writes are
server-side applies under one field manager, creates (Jobs, events), deletes with a precondition on the
uid, and finalizer patches with a precondition on the resource version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kubeconfig
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.resource import Resource

from sovereign_operator.api import API_VERSION, FIELD_MANAGER, KIND, PLURAL
from sovereign_operator.values import Manifest
from sovereign_operator.workqueue import TryLater

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_SECONDS = 30.0
# The API server ends a watch after this long; it is taken up where it ended.
WATCH_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind that the operator reads or writes, known beforehand: no discovery requests."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]


MODEL = Kind(API_VERSION, KIND, PLURAL)
JOB = Kind("batch/v1", "Job", "jobs")
POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
SERVICE = Kind("v1", "Service", "services")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
RAY_SERVICE = Kind("ray.io/v1", "RayService", "rayservices")
RAY_CLUSTER = Kind("ray.io/v1", "RayCluster", "rayclusters")
BY_NAME = {
    (kind.api_version, kind.kind): kind
    for kind in (
        MODEL,
        JOB,
        POD,
        SERVICE,
        SECRET,
        EVENT,
        NODE,
        NAMESPACE,
        NETWORK_POLICY,
        RAY_SERVICE,
        RAY_CLUSTER,
    )
}


class ClusterError(Exception):
    """The API server did not do what it was asked; the message is its own."""


class ApiUnavailable(ClusterError, TryLater):
    """No answer, or one that says: later (429, 5xx). Tried again with backoff."""


class Conflict(ClusterError, TryLater):
    """Somebody changed the object in between (409): look again."""


class Refused(ClusterError):
    """The request is understood and not allowed or not valid (400, 403, 422): repeating it does not help."""


class NamespaceTerminating(Refused):
    """Creates are refused because the namespace is being deleted."""


class KindMissing(ClusterError, TryLater):
    """The API server does not serve this kind (404 on the collection)."""


class Cluster:
    """A connection to one API server."""

    def __init__(self, api: kube.ApiClient) -> None:
        self._api = api
        self._client = DynamicClient(api)

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """The object as it is now, or None."""
        with contextlib.suppress(_NotFound):
            return await self._request(kind, "get", namespace=namespace, name=name)
        return None

    async def list(self, kind: Kind, namespace: str, label_selector: str) -> list[Manifest]:
        """The objects as they are now; none where the kind itself is not served."""
        with contextlib.suppress(_NotFound):
            answer = await self._request(kind, "get", namespace=namespace, label_selector=label_selector)
            return list(answer.get("items") or ())
        return []

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply with force: fields that others own and we render become ours."""
        kind = kind_of(manifest)
        try:
            return await self._request(
                kind,
                "server_side_apply",
                body=manifest,
                namespace=manifest["metadata"].get("namespace"),
                field_manager=FIELD_MANAGER,
                force_conflicts=True,
            )
        except _NotFound as error:
            raise KindMissing(str(error)) from None

    async def create(self, manifest: Manifest) -> Manifest:
        try:
            return await self._request(
                kind_of(manifest),
                "create",
                body=manifest,
                namespace=manifest["metadata"].get("namespace"),
                field_manager=FIELD_MANAGER,
            )
        except _NotFound as error:
            raise KindMissing(str(error)) from None

    async def delete(self, manifest: Manifest, *, foreground: bool = False) -> None:
        """Deletes this very object: one of the same name that came later stays. Gone already is fine.

        In the foreground the object stays visible until what it owns is gone.
        """
        metadata = manifest["metadata"]
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if foreground else "Background",
            "preconditions": {"uid": metadata["uid"]},
        }
        with contextlib.suppress(_NotFound, Conflict):
            await self._request(
                kind_of(manifest),
                "delete",
                name=metadata["name"],
                namespace=metadata.get("namespace"),
                body=options,
            )

    async def set_finalizers(self, manifest: Manifest, finalizers: Iterable[str]) -> Manifest | None:
        """Replaces the finalizers of exactly the object that was read (else Conflict). None: it is gone."""
        return await self.merge(manifest, {"metadata": {"finalizers": list(finalizers) or None}})

    async def merge(self, manifest: Manifest, patch: Manifest) -> Manifest | None:
        """A merge patch of exactly the object that was read (else Conflict). None: it is gone."""
        metadata = manifest["metadata"]
        read = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        patch = {**patch, "metadata": {**patch.get("metadata", {}), **read}}
        with contextlib.suppress(_NotFound):
            return await self._request(
                kind_of(manifest),
                "patch",
                body=patch,
                name=metadata["name"],
                namespace=metadata.get("namespace"),
                content_type="application/merge-patch+json",
                field_manager=FIELD_MANAGER,
            )
        return None

    async def write_status(self, model: Manifest, status: Mapping[str, Any]) -> Manifest | None:
        """One server-side apply to /status: what we no longer say is removed. None: the model is gone."""
        metadata = model["metadata"]
        body = {
            "apiVersion": MODEL.api_version,
            "kind": MODEL.kind,
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "status": dict(status),
        }
        with contextlib.suppress(_NotFound):
            return await _answer(
                self._client.request(
                    "patch",
                    f"{_path(self._client, MODEL, metadata['namespace'], metadata['name'])}/status",
                    body=body,
                    content_type="application/apply-patch+yaml",
                    field_manager=FIELD_MANAGER,
                    force_conflicts=True,
                    serialize=False,
                    _request_timeout=REQUEST_TIMEOUT_SECONDS,
                )
            )
        return None

    async def follow(self, kind: Kind, namespace: str, label_selector: str) -> AsyncIterator[tuple[str, Any]]:
        """("LISTED", all objects), then (event, object) as they come; ends when it has to be listed anew."""
        path = str(_resource(self._client, kind).path(namespace=namespace))
        listing = await _answer(self._stream(path, label_selector))
        type_of = {"apiVersion": kind.api_version, "kind": kind.kind}
        yield "LISTED", [{**item, **type_of} for item in listing.get("items") or ()]
        version = listing["metadata"]["resourceVersion"]
        while True:
            try:
                response = await self._stream(path, label_selector, watch=True, resource_version=version)
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event["type"], event["object"]
            except ApiException as error:
                if error.status == 410:
                    return
                raise _error(error) from None
            except TimeoutError:
                continue
            except (aiohttp.ClientError, OSError) as error:
                raise ApiUnavailable(f"The watch of {kind.plural} broke: {error}") from error

    def _stream(self, path: str, label_selector: str, **parameters: Any) -> Any:
        limit = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 30)
        seconds = WATCH_SECONDS if parameters.get("watch") else None
        return self._client.request(
            "get",
            path,
            label_selector=label_selector,
            timeout_seconds=seconds,
            serialize=False,
            _request_timeout=limit if seconds else REQUEST_TIMEOUT_SECONDS,
            **parameters,
        )

    async def openapi(self, group_version: str) -> Manifest | None:
        """The OpenAPI v3 document of one group version, or None where it is not served."""
        return await self._document(f"/openapi/v3/apis/{group_version}")

    async def served(self, group_version: str) -> frozenset[str]:
        """The plural names of the kinds that are served in one group version."""
        document = await self._document(f"/apis/{group_version}") or {}
        return frozenset(
            str(one["name"]) for one in document.get("resources") or () if "/" not in one["name"]
        )

    async def _document(self, path: str) -> Manifest | None:
        with contextlib.suppress(_NotFound):
            return await _answer(
                self._client.request("get", path, serialize=False, _request_timeout=REQUEST_TIMEOUT_SECONDS)
            )
        return None

    async def _request(self, kind: Kind, verb: str, **arguments: Any) -> Manifest:
        resource = _resource(self._client, kind)
        call = getattr(self._client, verb)(
            resource, serialize=False, _request_timeout=REQUEST_TIMEOUT_SECONDS, **arguments
        )
        return await _answer(call)


def kind_of(manifest: Manifest) -> Kind:
    return BY_NAME[(manifest["apiVersion"], manifest["kind"])]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[Cluster]:
    """A cluster from KUBECONFIG where it is set, else from the pod's service account."""
    configuration = kube.Configuration()
    if path := os.environ.get("KUBECONFIG"):
        await kubeconfig.load_kube_config(config_file=str(Path(path)), client_configuration=configuration)
    else:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    async with kube.ApiClient(configuration) as api:
        yield Cluster(api)


# -- wire -------------------------------------------------------------------------------------------------


class _NotFound(ClusterError):
    """404: what that means depends on the call."""


def _path(client: DynamicClient, kind: Kind, namespace: str, name: str) -> str:
    return str(_resource(client, kind).path(name=name, namespace=namespace))


def _resource(client: DynamicClient, kind: Kind) -> Resource:
    """The dynamic client's own description of a kind, made by hand instead of discovered."""
    return Resource(
        prefix="apis" if kind.group else "api",
        group=kind.group,
        api_version=kind.version,
        kind=kind.kind,
        name=kind.plural,
        namespaced=kind.namespaced,
        verbs=[],
        preferred=True,
        client=client,
    )


async def _answer(call: Any) -> Manifest:
    """Awaits the call and turns whatever went wrong into one of our errors."""
    try:
        response = await call
        body = await response.read()
    except ApiException as error:
        raise _error(error) from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiUnavailable(f"The API server did not answer: {error or type(error).__name__}.") from error
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ApiUnavailable("The API server answered with something that is not an object.")
    return answer


def _error(error: ApiException) -> ClusterError:
    """A status code as what it means to us; the message is the API server's, cut to size."""
    details: Mapping[str, Any] = {}
    with contextlib.suppress(ValueError, TypeError):
        body = error.body.decode() if isinstance(error.body, bytes) else error.body
        details = json.loads(body or "{}")
    message = str(details.get("message") or f"{error.status} {error.reason}")[:1024]
    causes = (details.get("details") or {}).get("causes") or ()
    if error.status == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceTerminating(message)
    if error.status == 404:
        return _NotFound(message)
    if error.status == 409:
        return Conflict(message)
    if error.status in (400, 403, 405, 422):
        return Refused(message)
    return ApiUnavailable(message)
