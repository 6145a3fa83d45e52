"""Traffic that gives every series a value which rules or dashboard ask for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import aiohttp

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.signing import Signer
from tests.running import Mirror, eventually, running

_LIMITS = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}


@dataclass
class Watched:
    """A mirror of a registry that is not at its best."""

    mirror: Mirror
    upstream: FakeRegistry
    _numbers: "count[int]" = field(default_factory=count)

    async def round(self) -> None:
        """A request of every result, an answer of upstream of every kind."""
        number = next(self._numbers)
        repo = f"/v2/library/app{number}"
        made = image(random_bytes(1000, number), marker=str(number))
        self.upstream.add_image(f"library/app{number}", made, "1", "2")
        self.upstream.add_image("library/unsigned", made, "1")
        missing = f"sha256:{number:064x}"
        for path in (
            f"{repo}/manifests/1",  # miss
            f"{repo}/manifests/{made.digest}",  # hit
            f"{repo}/blobs/{made.digests[0]}",
            f"{repo}/blobs/{missing}",  # negative
            f"{repo}/tags/list",
            f"/v2/unknown.example.com/app{number}/manifests/1",  # denied
            "/v2/library/blocked/manifests/1",
            "/v2/library/unsigned/manifests/1",
        ):
            await self.mirror.get(path)
        await self._coalesced(repo, number)
        await self._faulty(f"{repo}/manifests/1", Fault("manifest", headers=_LIMITS))  # revalidated
        await self._faulty(f"{repo}/manifests/1", Fault("manifest", refuse=True))  # stale
        await self._faulty(f"{repo}/manifests/3", Fault("manifest", status=500))  # error
        await self._faulty(f"{repo}/blobs/{made.digests[1]}", Fault("blob", flip=1))  # mismatch
        again = {"Retry-After": "0"}
        await self._faulty(f"{repo}/manifests/2", Fault("manifest", status=429, headers=again))

    async def _coalesced(self, repo: str, number: int) -> None:
        digest = self.upstream.add_blob(random_bytes(200_000, -number - 1))
        self.upstream.hold(1)
        place = f"{repo}/blobs/{digest}"
        asked = [asyncio.create_task(self.mirror.get(place)) for _ in range(2)]
        await eventually(self.mirror, "mirror_clients_waiting", 2)
        self.upstream.release()
        await asyncio.gather(*asked)

    async def _faulty(self, path: str, fault: Fault) -> None:
        fault.times = 9
        self.upstream.faults.append(fault)
        with contextlib.suppress(aiohttp.ClientError):  # a broken body
            await self.mirror.get(path)
        self.upstream.faults.clear()


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[Watched]:
    directory.mkdir(exist_ok=True)
    key = directory / "key.pub"
    key.write_bytes(Signer().pem)
    policies = {
        "block": [{"image": "blocked:*"}],
        "policy": [{"images": ["unsigned:*"], "signed_by": [str(key)]}],
    }
    tags = {"max_age": "0s"}
    secret = directory / "secret"
    secret.write_text("0123456789abcdef" * 4)
    alone = "http://127.0.0.1:1"  # a cluster of this mirror alone
    cluster = {"secret_file": str(secret), "advertise": alone, "peers": [alone]}
    cluster["objects"] = f"file://{directory}/objects"
    async with (
        FakeRegistry() as upstream,
        running(
            directory, {"docker.io": upstream.url}, tags=tags, cluster=cluster, **policies
        ) as mirror,
    ):
        yield Watched(mirror, upstream)
