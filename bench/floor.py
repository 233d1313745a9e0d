# SPDX-License-Identifier: Apache-2.0
"""The floor: what Python's own HTTP client needs to move and hash the bytes, with nothing else around it.

No manifest, no retries, no redirect policy, no check but the registry's own: one GET, sha256, one PATCH and
one PUT for each file, several files at once. `python -m bench.floor WORKERS REGISTRY REPOSITORY URL…`
"""

import hashlib
import http.client
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

PIECE = 1024 * 1024


def pipe(url: str, registry: str, repository: str) -> str:
    source = urlsplit(url)
    hub = http.client.HTTPConnection(source.netloc)
    target = http.client.HTTPConnection(registry)
    hub.request("GET", f"{source.path}?{source.query}", headers={"Accept-Encoding": "identity"})
    download = hub.getresponse()
    assert download.status == 200, download.status
    length = int(download.headers["Content-Length"])
    target.request("POST", f"/v2/{repository}/blobs/uploads/")
    begun = target.getresponse()
    begun.read()
    target.putrequest("PATCH", begun.headers["Location"])
    target.putheader("Content-Length", str(length))
    target.putheader("Content-Range", f"0-{length - 1}")
    target.endheaders()
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE))
    while count := download.readinto(buffer):
        digest.update(buffer[:count])
        target.send(buffer[:count])
    accepted = target.getresponse()
    accepted.read()
    assert accepted.status == 202, accepted.status
    name = f"sha256:{digest.hexdigest()}"
    target.request("PUT", f"{accepted.headers['Location']}&digest={name}", headers={"Content-Length": "0"})
    ended = target.getresponse()
    assert ended.status == 201, ended.read()
    hub.close()
    target.close()
    return name


def main() -> None:
    workers, registry, repository, *urls = sys.argv[1:]
    with ThreadPoolExecutor(int(workers)) as pool:
        list(pool.map(lambda url: pipe(url, registry, repository), urls))


if __name__ == "__main__":
    main()
