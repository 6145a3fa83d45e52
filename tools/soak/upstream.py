"""The upstream of the soak, in its own process: a registry that fails one request in five.

``python -m tools.soak.upstream SEED`` prints its address; on SIGTERM it prints its statistics.
"""

import asyncio
import json
import random
import signal
import sys
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from tests.fakes import FakeRegistry, Fault
from tests.fakes.content import OCI_MANIFEST
from tools.soak.catalogue import MIB, Catalogue

FAULTY = 0.2
_MOVE_SECONDS = 0.5
_LARGE = 1 << 40  # reduced to the size of the content on use

# name: weight among the faults, and the fault.  429 and silence are rare because the mirror then
# pauses all requests, by design, and would not meet the other faults.
_FAULTS: dict[str, tuple[float, dict[str, Any]]] = {
    "500": (3, {"status": 500, "body": b"oops"}),
    "503": (3, {"status": 503}),
    "429": (0.05, {"status": 429, "headers": {"Retry-After": "1"}}),
    "html": (2, {"status": 200, "body": b"<html>log in</html>"}),
    "refuse": (2, {"refuse": True}),
    "hang": (0.05, {"hang_before": True}),
    "cut": (3, {"cut": _LARGE}),
    "reset": (3, {"reset": _LARGE}),
    "stall": (1, {"stall": _LARGE}),
    "flip": (3, {"flip": _LARGE}),
    "ignore_range": (2, {"ignore_range": True}),
    "unknown_length": (2, {"unknown_length": True}),
    "redirect": (4, {"redirect": "where the other registry is"}),
}


@dataclass
class FaultyRegistry(FakeRegistry):
    """A registry with random faults for every request but the ping."""

    draw: random.Random = field(default_factory=random.Random)
    elsewhere: str = ""
    done: Counter[str] = field(default_factory=Counter)

    def _fault(self, kind: str, method: str) -> Fault | None:
        self.done["requests"] += 1
        if kind == "ping" or self.draw.random() >= FAULTY:
            return None
        # Not html for a blob: there it is only wrong bytes (flip), and of a wrong size.
        names = [name for name in _FAULTS if kind == "manifest" or name != "html"]
        (name,) = self.draw.choices(names, [_FAULTS[name][0] for name in names])
        self.done[name] += 1
        return Fault(kind=kind, **_FAULTS[name][1])

    async def _failed(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse | None:
        if fault.redirect:
            fault = replace(fault, redirect=self.elsewhere + request.raw_path)
        return await super()._failed(request, fault)

    async def _blob(
        self, request: web.BaseRequest, repo: str, digest: str, fault: Fault
    ) -> web.StreamResponse:
        fitting = self._fitting(fault, len(self.blobs.get(digest, b"x")))
        return await super()._blob(request, repo, digest, fitting)

    async def _manifest(
        self, request: web.BaseRequest, repo: str, reference: str, fault: Fault
    ) -> web.StreamResponse:
        # Within the first bytes, so that every manifest is affected.
        return await super()._manifest(request, repo, reference, self._fitting(fault, 200))

    def _fitting(self, fault: Fault, size: int) -> Fault:
        at: dict[str, Any] = {
            name: self.draw.randrange(size)
            for name in ("flip", "cut", "reset", "stall")
            if getattr(fault, name) is not None
        }
        return replace(fault, **at)


@dataclass
class Elsewhere(FakeRegistry):
    """The target of redirects: denies every fifth request, like an expired signature."""

    draw: random.Random = field(default_factory=random.Random)

    def _fault(self, kind: str, method: str) -> Fault | None:
        return Fault(kind=kind, status=403) if self.draw.random() < FAULTY else None


def _fill(registry: FakeRegistry, catalogue: Catalogue) -> None:
    registry.blobs = {blob.digest: catalogue.content(blob) for blob in catalogue.blobs}
    for repository, bodies in catalogue.manifests.items():
        for body in bodies:
            registry.add_manifest(repository, body, OCI_MANIFEST)
        for tag in catalogue.tags:
            registry.tags[repository, tag] = catalogue.digests[repository][0]


async def _move_tags(registry: FakeRegistry, catalogue: Catalogue, draw: random.Random) -> None:
    while True:
        await asyncio.sleep(_MOVE_SECONDS)
        repository = draw.choice(list(catalogue.manifests))
        digest = draw.choice(catalogue.digests[repository])
        registry.tags[repository, draw.choice(catalogue.tags)] = digest


async def _serve(seed: int) -> None:
    draw = random.Random(seed + 1)
    short: Any = deque(maxlen=10)  # limits memory: the list of requests would grow without end
    # Each response is slow enough that fills overlap and are joined.
    registry = FaultyRegistry(seen=short, rate_per_connection=16 * MIB, draw=draw)
    catalogue = Catalogue(seed)
    _fill(registry, catalogue)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    elsewhere = Elsewhere(seen=short, draw=draw)
    elsewhere.blobs, elsewhere.manifests = registry.blobs, registry.manifests
    elsewhere.tags = registry.tags
    async with elsewhere, registry:
        registry.elsewhere = elsewhere.url
        print(json.dumps({"url": registry.url, "bytes": catalogue.bytes}), flush=True)
        moving = asyncio.create_task(_move_tags(registry, catalogue, draw))
        await stop.wait()
        moving.cancel()
        print(json.dumps(dict(registry.done)), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
