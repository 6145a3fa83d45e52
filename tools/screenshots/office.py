"""A day at an office, in a few seconds: registries, and clients with typical pulls."""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mirror.api.parts import client_type
from mirror.stats.buffer import Request
from mirror.stats.ledger import Ledger
from tests.fakes import FakeRegistry, Fault, Image, image, random_bytes
from tests.running import Mirror

HUB = "docker.io"
MIB = 1 << 20
HOUR = 3600
DAY = 24 * HOUR

DOCKER = "docker/28.3.2 go/go1.24.4 os/linux arch/amd64"
CONTAINERD = "containerd/v2.1.3"
PODMAN = "libpod/5.4.2"
BUILDKIT = "buildkit/v0.23"
SKOPEO = "skopeo/1.18.0"


DEBIAN = 28  # MiB of the layer that several images share


@dataclass(frozen=True)
class Pulled:
    """An image: its registry, MiB of its layers, its clients and number of pulls."""

    upstream: str
    repository: str
    tag: str
    layers: Sequence[float]
    agents: Sequence[str]


IMAGES = (
    Pulled(HUB, "library/postgres", "17", (28, 11, 64, 0.4), (DOCKER,)),
    Pulled("quay.io", "prometheus/prometheus", "v3.5.0", (1.9, 42, 37), (CONTAINERD,)),
    Pulled(HUB, "grafana/grafana", "12.0.2", (3.6, 9, 71), (DOCKER, PODMAN)),
    Pulled(HUB, "library/redis", "8-alpine", (3.5, 12), (CONTAINERD,) * 3),
    Pulled(
        "ghcr.io", "astral-sh/uv", "0.8-python3.13-bookworm-slim", (27, 12, 16), (BUILDKIT,) * 4
    ),
    Pulled("registry.k8s.io", "pause", "3.10", (0.3,), (CONTAINERD,) * 7),
    Pulled(HUB, "library/nginx", "1.29", (28, 38, 0.1), (DOCKER,) * 3),
    Pulled("registry.k8s.io", "ingress-nginx/controller", "v1.13.0", (4, 58, 21), (CONTAINERD,)),
    Pulled(HUB, "library/python", "3.13-slim", (28, 3.4, 12), (BUILDKIT,) * 5),
    Pulled(HUB, "library/alpine", "3.22", (3.5,), (BUILDKIT, DOCKER) * 5),
    Pulled("ghcr.io", "renovatebot/renovate", "41", (29, 88), (SKOPEO,)),
    Pulled(HUB, "library/node", "22-alpine", (3.5, 48, 1.2), (DOCKER,) * 2),
)
FILLING = (
    Pulled("mcr.microsoft.com", "dotnet/sdk", "9.0", (150,), (DOCKER,) * 3),
    Pulled(HUB, "pytorch/pytorch", "2.7.1-cuda12.8", (420,), (CONTAINERD,)),
    Pulled("quay.io", "keycloak/keycloak", "26.3", (94,), (PODMAN,) * 2),
)
UPSTREAMS = tuple(dict.fromkeys(each.upstream for each in (*IMAGES, *FILLING)))


def fill_registries(registries: Mapping[str, FakeRegistry]) -> None:
    """Put all images there; Docker Hub has a rate limit."""
    for number, each in enumerate((*IMAGES, *FILLING)):
        registries[each.upstream].add_image(each.repository, _image(number, each), each.tag)
    told = {"ratelimit-limit": "200;w=21600", "ratelimit-remaining": "143;w=21600"}
    registries[HUB].faults.append(Fault(kind="manifest", times=1000, headers=told))


def _image(number: int, pulled: Pulled) -> Image:
    layers = [
        random_bytes(round(size * MIB), 0 if size == DEBIAN else 100 * number + at)
        for at, size in enumerate(pulled.layers)
    ]
    return image(*layers, marker=f"{pulled.repository}:{pulled.tag}")


async def write_history(directory: Path) -> None:
    """Write the weeks before, and each hour of today, into the ledger."""
    now, chance = time.time(), random.Random(7)
    moments = [(now - day * DAY - 60, 1.0) for day in range(29, 0, -1)]
    moments += [(now - hour * HOUR - 60, _busy(now - hour * HOUR)) for hour in range(23, -1, -1)]
    for moment, part in moments:
        ledger = Ledger(directory, partial(float, moment))
        weekend = time.localtime(moment).tm_wday >= 5
        for upstream in UPSTREAMS:
            pulls = chance.randint(40, 90) if weekend else chance.randint(380, 700)
            pulls = pulls if upstream == HUB else pulls // 6
            missed = chance.uniform(0.01, 0.06) if part == 1 else chance.uniform(0.0, 0.3)
            for result, share, size in (("hit", 1 - missed, 9 * MIB), ("miss", missed, 14 * MIB)):
                request = Request(upstream, "", "", "blob", result, "", size)
                count = round(pulls * share * part)
                for _ in range(count):
                    ledger.buffer.add(request, "", moment, moment)
                if result == "miss":
                    ledger.buffer.got(upstream, count * size)
        if part == 1:
            for each in IMAGES:
                await _pull_before(ledger, each, moment)
        await ledger.close()


def _busy(moment: float) -> float:
    """The share of a day's pulls in an hour: most of them while people work."""
    return 0.09 if 7 <= time.localtime(moment).tm_hour <= 18 else 0.01


async def _pull_before(ledger: Ledger, pulled: Pulled, moment: float) -> None:
    for number, agent in enumerate(pulled.agents):
        request = Request(
            *(
                pulled.upstream,
                pulled.repository,
                pulled.tag,
                "manifest",
                "hit",
                client_type(agent),
                0,
            )
        )
        ledger.buffer.add(request, f"10.1.0.{number}", moment, moment)


async def work(mirror: Mirror) -> None:
    """Run all pulls."""
    for each in IMAGES:
        for agent in each.agents:
            await pull(mirror, each, agent)


async def pull(mirror: Mirror, pulled: Pulled, agent: str) -> None:
    """Pull like dockerd: the tag, then the blobs of its manifest."""
    base = f"/{pulled.upstream}/v2/{pulled.repository}"
    await mirror.get(f"{base}/manifests/{pulled.tag}", "HEAD", User_Agent=agent)
    answer = await mirror.get(f"{base}/manifests/{pulled.tag}", User_Agent=agent)
    manifest = json.loads(answer.body)
    for blob in (manifest["config"], *manifest["layers"]):
        await mirror.get(f"{base}/blobs/{blob['digest']}", User_Agent=agent)


def begin_filling(mirror: Mirror) -> list[asyncio.Task[None]]:
    """Begin pulls that take a while."""
    return [
        asyncio.create_task(pull(mirror, each, agent)) for each in FILLING for agent in each.agents
    ]


async def suffer(mirror: Mirror, registries: Mapping[str, FakeRegistry]) -> None:
    """Let Docker Hub limit requests, and quay.io go away; then some clients pull."""
    registries[HUB].faults[:] = [Fault(kind="", times=1000, status=429, headers=LATER)]
    await registries["quay.io"].stop()
    for path, agent in (
        ("quay.io/v2/prometheus/alertmanager/manifests/v0.28.1", CONTAINERD),
        ("docker.io/v2/library/postgress/manifests/17", DOCKER),
        ("ghcr.io/v2/astral-sh/uv/manifests/0.8-pyhton3.13", BUILDKIT),
    ):
        await mirror.get(f"/{path}", User_Agent=agent)


LATER = {"Retry-After": "2700"}
