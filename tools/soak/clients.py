"""The clients of the soak: each sends random requests, checks the responses, and pauses."""

import asyncio
import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of
from tools.soak.catalogue import KIB, Blob, Catalogue

_EXPECTED = {200, 206, 304, 404, 429, 502, 503, 504}
_LIMIT_SECONDS = 120.0  # a request that takes longer hangs
_LAST_SECONDS = 15.0  # for active requests at the end
_SLOW_PIECE = 64 * KIB
_SLOW_SECONDS = 0.2  # per piece: 8 MiB take half a minute
_HASTE_SECONDS = 0.02  # about the time of a response: clients leave before it, or within
_HOT_SHARE = 0.2  # share of the blobs that gets half of the requests
_ACCEPT = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
_KINDS = {
    "blob": 40,
    "range": 18,
    "leave": 10,
    "hasty": 6,
    "slow": 5,
    "head_blob": 7,
    "missing": 2,
    "tag": 10,
    "digest": 5,
    "head_tag": 2,
    "unchanged": 1,
}


class _WrongBytesError(Exception):
    """A complete response has wrong content."""


@dataclass
class Counts:
    """Results of all requests."""

    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    received: int = 0


@dataclass
class Client:
    """One client with its own connection pool."""

    url: str
    catalogue: Catalogue
    tally: Counts
    draw: random.Random
    pause: float

    async def run(self, stopping: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=_LIMIT_SECONDS)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:
            self._session = session
            while not stopping.is_set():
                await self._one()
                # Ends the pause at once when the client is told to stop.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.draw.expovariate(1 / self.pause)):
                        await stopping.wait()

    async def _one(self) -> None:
        (kind,) = self.draw.choices(list(_KINDS), list(_KINDS.values()))
        result = "dismissed"
        try:
            result = await getattr(self, f"_{kind}")()
        except _WrongBytesError as error:
            result = "wrong"
            self.tally.wrong.append(f"{kind}: {error}")
        except TimeoutError:
            result = "hung"
            self.tally.unexpected.append(f"{kind}: no end in {_LIMIT_SECONDS:.0f} s")
        except (aiohttp.ClientError, ConnectionError):
            result = "broken"
        finally:
            self.tally.results[kind, result] += 1

    # Actions of a client: each returns the status, or another result.

    async def _blob(self) -> str:
        return await self._whole(0.0)

    async def _slow(self) -> str:
        return await self._whole(_SLOW_SECONDS)

    async def _whole(self, seconds_per_piece: float) -> str:
        blob = self._some_blob()
        async with self._get(self._blob_path(blob.digest)) as response:
            if response.status != 200:
                return await self._refused(response)
            hasher = hashlib.sha256()
            async for piece in response.content.iter_chunked(_SLOW_PIECE):
                hasher.update(piece)
                self.tally.received += len(piece)
                if seconds_per_piece:
                    await asyncio.sleep(seconds_per_piece)
            self._expect(f"sha256:{hasher.hexdigest()}" == blob.digest, f"blob {blob}")
            return "200"

    async def _leave(self) -> str:
        blob = self._some_blob()
        async with self._get(self._blob_path(blob.digest)) as response:
            if response.status != 200:
                return await self._refused(response)
            # Not compared: an incomplete body need not be verified.
            if self.draw.random() < 0.7:
                await response.content.read(self.draw.randrange(1, blob.size))
            response.close()
            return "left"

    async def _hasty(self) -> str:
        try:
            async with asyncio.timeout(self.draw.uniform(0, _HASTE_SECONDS)):
                return await self._whole(0.0)
        except TimeoutError:
            return "left"

    async def _range(self) -> str:
        blob = self._some_blob()
        first = self.draw.randrange(blob.size)
        last = self.draw.randrange(first, blob.size)
        headers = {"Range": f"bytes={first}-{last}"}
        async with self._get(self._blob_path(blob.digest), headers) as response:
            if response.status not in {200, 206}:
                return await self._refused(response)
            if response.status == 200:  # the size is not known yet: a whole response is allowed
                first, last = 0, blob.size - 1
            else:
                said = response.headers.get("Content-Range")
                self._expect(said == f"bytes {first}-{last}/{blob.size}", f"{said} of {blob}")
            body = await response.read()
            self.tally.received += len(body)
            expected = self.catalogue.content(blob, first, last + 1)
            self._expect(body == expected, f"range {first}-{last} of {blob}")
            return str(response.status)

    async def _head_blob(self) -> str:
        blob = self._some_blob()
        async with self._get(self._blob_path(blob.digest), method="HEAD") as response:
            if response.status != 200:
                return await self._refused(response)
            said = response.headers.get("Content-Length", str(blob.size))
            self._expect(said == str(blob.size), f"HEAD says {said} of {blob}")
            return "200"

    async def _missing(self) -> str:
        digest = digest_of(self.draw.randbytes(2))
        async with self._get(self._blob_path(digest)) as response:
            self._expect(response.status != 200, f"{digest} does not exist")
            return await self._refused(response)

    async def _tag(self) -> str:
        repository = self.draw.choice(list(self.catalogue.manifests))
        return await self._manifest(repository, self.draw.choice(self.catalogue.tags))

    async def _digest(self) -> str:
        repository = self.draw.choice(list(self.catalogue.manifests))
        return await self._manifest(
            repository, self.draw.choice(self.catalogue.digests[repository])
        )

    async def _manifest(self, repository: str, reference: str) -> str:
        async with self._get(f"/v2/{repository}/manifests/{reference}", _ACCEPT) as response:
            if response.status != 200:
                return await self._refused(response)
            body, said = await response.read(), response.headers["Docker-Content-Digest"]
            known = self.catalogue.manifests[repository]
            good = (
                body in known
                and digest_of(body) == said
                and reference in {*self.catalogue.tags, said}
            )
            self._expect(good, f"manifest {repository} {reference}: {said}")
            return "200"

    async def _head_tag(self) -> str:
        repository = self.draw.choice(list(self.catalogue.manifests))
        path = f"/v2/{repository}/manifests/{self.draw.choice(self.catalogue.tags)}"
        async with self._get(path, _ACCEPT, method="HEAD") as response:
            if response.status != 200:
                return await self._refused(response)
            said = response.headers["Docker-Content-Digest"]
            self._expect(said in self.catalogue.digests[repository], f"HEAD {path}: {said}")
            return "200"

    async def _unchanged(self) -> str:
        repository = self.draw.choice(list(self.catalogue.manifests))
        digest = self.draw.choice(self.catalogue.digests[repository])
        headers = {**_ACCEPT, "If-None-Match": f'"{digest}"'}
        async with self._get(f"/v2/{repository}/manifests/{digest}", headers) as response:
            return "304" if response.status == 304 else await self._refused(response)

    # Helpers.

    def _get(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> "contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]":
        return self._session.request(method, self.url + path, headers=headers)

    def _blob_path(self, digest: str) -> str:
        return f"/v2/{self.draw.choice(list(self.catalogue.manifests))}/blobs/{digest}"

    def _some_blob(self) -> Blob:
        blobs = self.catalogue.blobs
        hot = self.draw.random() < 0.5
        return blobs[self.draw.randrange(round(len(blobs) * (_HOT_SHARE if hot else 1)))]

    async def _refused(self, response: aiohttp.ClientResponse) -> str:
        body = await response.read()
        what = f"{response.status} {response.url.path}: {body[:200]!r}"
        if response.status not in _EXPECTED or response.status < 400:
            self.tally.unexpected.append(what)
        elif response.method != "HEAD" and "errors" not in json.loads(body):
            self.tally.unexpected.append(f"no error of the spec: {what}")
        return str(response.status)

    def _expect(self, good: bool, what: str) -> None:
        if not good:
            raise _WrongBytesError(what)


@contextlib.asynccontextmanager
async def clients_at_work(
    url: str, catalogue: Catalogue, tally: Counts, count: int, pause: float, seed: int
) -> AsyncIterator[None]:
    """Run ``count`` clients; at the end each may finish its request, for a while."""
    stopping = asyncio.Event()
    clients = [
        asyncio.create_task(
            Client(url, catalogue, tally, random.Random(f"{seed} {number}"), pause).run(stopping)
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        stopping.set()
        _, late = await asyncio.wait(clients, timeout=_LAST_SECONDS)
        for client in late:
            client.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(ended, Exception):
                tally.unexpected.append(f"a client ended: {ended!r}")
