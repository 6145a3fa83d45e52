"""A mirror that can have no further thread, or no further memory, under many clients that check it.

``python -m tools.soak.scarce --limit pids|memory [--minutes 5] [--clients 60] [--seed N]``.

Half of the clients have their own credentials, for repositories that the others may not read.  Once
the mirror serves, it is limited to its current threads (a pids cgroup, which needs root) or its
current address space (RLIMIT_AS), and ``--spare`` threads or MiB.  Responses may fail then; exits 1
with the reasons if a client received a byte that it must not have.
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import digest_of
from tests.fakes.office import EVERYBODY, Office, basic
from tests.peers.mirror import MirrorProcess

KIB, MIB = 1 << 10, 1 << 20
_USERS = {name: basic(name, f"secret-of-{name}") for name in ("ann", "bob")}
_SIZES = (300 * KIB, 3 * MIB, 700 * KIB, 1 * MIB)
_REPOSITORIES_EACH = 6
_PIECE = 64 * KIB
_LIMIT_SECONDS = 60.0
_SPARE_MIB = 24
_CACHE = "24MiB"  # smaller than the content, so that blobs are fetched repeatedly
EXTRA = """client_credentials = true
[access]
grant_max_age = "2s"
[log]
access = false
"""


@dataclass
class Counts:
    """Results of the clients."""

    results: Counter[str] = field(default_factory=Counter)
    received: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Crowd:
    """Clients of a mirror; each knows every byte that it may receive."""

    url: str
    office: Office
    owners: dict[str, str]  # the user that may read a repository
    tally: Counts
    draw: random.Random

    async def run(self, clients: int, goes_on: Callable[[], bool]) -> None:
        """Run ``clients`` clients, which repeat their requests while ``goes_on`` returns true."""
        names = [*_USERS, "", ""]
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(names[number % len(names)], goes_on))

    async def _client(self, user: str, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            connector = aiohttp.TCPConnector(limit=1)
            async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
                for _ in range(self.draw.randrange(1, 8)):
                    await self._ask(session, user)

    async def _ask(self, session: aiohttp.ClientSession, user: str) -> None:
        repository = self.draw.choice(list(self.owners))
        owner = self.owners[repository]
        _, blobs = self.office.content(repository)
        digest = self.draw.choice(blobs)
        right = self.office.registry.blobs[digest]
        start = self.draw.randrange(len(right)) if self.draw.random() < 0.2 else 0
        stop = self.draw.randrange(len(right)) if self.draw.random() < 0.2 else len(right)
        headers = {"Authorization": _USERS[user]} if user else {}
        if start:
            headers["Range"] = f"bytes={start}-"
        allowed = owner in {EVERYBODY, user}
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                url = f"{self.url}/v2/{repository}/blobs/{digest}"
                async with session.get(url, headers=headers) as response:
                    await self._check(response, right, start, stop, allowed=allowed)
        except (aiohttp.ClientError, ConnectionError):
            self.tally.results["broken"] += 1
            await asyncio.sleep(0.01)
        except TimeoutError:
            self.tally.results["hung"] += 1

    async def _check(
        self,
        response: aiohttp.ClientResponse,
        right: bytes,
        start: int,
        stop: int,
        *,
        allowed: bool,
    ) -> None:
        what = f"{response.status} {response.url.path}"
        position = start if response.status == 206 else 0
        good = response.status in {200, 206}
        if good and not allowed:
            self.tally.wrong.append(f"{what}: sent to a client that may not read it")
        async for piece in response.content.iter_chunked(_PIECE):
            self.tally.received += len(piece)
            if good and piece != right[position : position + len(piece)]:
                self.tally.wrong.append(f"{what}: wrong bytes at {position}")
                good = False
            position += len(piece)
            if position >= stop and stop < len(right):
                response.close()
                self.tally.results["left"] += 1
                return
        if good and position != len(right):
            self.tally.wrong.append(
                f"{what}: a complete answer after {position} of {len(right)} bytes"
            )
        self.tally.results[f"{'may' if allowed else 'may not'}: {response.status}"] += 1


def fill(registry: FakeRegistry) -> tuple[Office, dict[str, str]]:
    """A registry with public repositories and those of Ann and of Bob; and the owners by
    repository.
    """
    office, owners = Office(registry), dict[str, str]()
    for owner in (EVERYBODY, EVERYBODY, *_USERS):
        for number in range(_REPOSITORIES_EACH):
            repository = f"{owner}/app{len(owners)}"
            size = _SIZES[number % len(_SIZES)]
            content = image(random_bytes(size, len(owners)), marker=repository)
            office.add(repository, content, _USERS.get(owner, EVERYBODY))
            owners[repository] = owner
    for digest, body in registry.blobs.items():
        assert digest_of(body) == digest
    return office, owners


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def address_space_of(pid: int) -> int:
    """Address space of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def lookup_cgroups() -> Path | None:
    """The directory for new pids cgroups, None if there is none."""
    for root in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        probe = root / f"mirror-probe-{os.getpid()}"
        with contextlib.suppress(OSError):
            probe.mkdir()
            try:
                if (probe / "pids.max").exists():
                    return root
            finally:
                probe.rmdir()
    return None


@contextlib.contextmanager
def no_more_threads(pid: int, spare: int) -> Iterator[str]:
    """Limit a process to its current threads and ``spare`` more; yields a description."""
    root = lookup_cgroups()
    assert root is not None, "needs root and a pids cgroup"
    group = root / f"mirror-soak-{pid}"
    group.mkdir()
    home = Path(f"/proc/{pid}/cgroup").read_text()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        most = threads_of(pid) + spare
        (group / "pids.max").write_text(str(most))
        yield f"pids.max = {most}, {spare} more than it has"
        print((group / "pids.events").read_text().strip(), "thread starts refused")
    finally:
        with contextlib.suppress(OSError):  # its process has ended
            before = next(line for line in home.splitlines() if "pids" in line or "::" in line)
            place = root / before.rpartition(":")[2].lstrip("/")
            (place / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def no_more_memory(pid: int, spare: int) -> str:
    """Limit a process to its current address space and ``spare`` bytes."""
    most = address_space_of(pid) + spare
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
    return f"RLIMIT_AS = {most / MIB:.0f} MiB, {spare / MIB:.0f} MiB more than it has"


async def _soak(arguments: argparse.Namespace, directory: Path) -> list[str]:
    tally = Counts()
    async with FakeRegistry(rate_per_connection=32 * MIB) as registry:
        office, owners = fill(registry)
        mirror = MirrorProcess(directory, {"docker.io": registry.url}, EXTRA, measured=False)
        mirror.cache = f'max_size = "{_CACHE}"'
        await asyncio.to_thread(mirror.start)
        try:
            with contextlib.ExitStack() as stack:
                if arguments.limit == "pids":
                    limit = stack.enter_context(no_more_threads(mirror.pid, arguments.spare or 0))
                else:
                    limit = no_more_memory(mirror.pid, (arguments.spare or _SPARE_MIB) * MIB)
                print(f"{limit}, {threads_of(mirror.pid)} threads", flush=True)
                crowd = Crowd(mirror.url, office, owners, tally, random.Random(arguments.seed))
                ends = time.monotonic() + arguments.minutes * 60
                await crowd.run(arguments.clients, lambda: time.monotonic() < ends)
                print(f"{threads_of(mirror.pid)} threads at the end")
            log, figures = mirror.output(), {}
            with contextlib.suppress(OSError):
                figures = await asyncio.to_thread(mirror.metrics)
        finally:
            await asyncio.to_thread(mirror.kill)
    for result, count in sorted(tally.results.items()):
        print(f"  {result:14} {count}")
    for name, value in sorted(figures.items()):
        if name.startswith(("mirror_fills_total", "mirror_evictions_total")):
            print(f"  {name} {value:.0f}")
    print(f"  {tally.received / MIB:.0f} MiB received, {len(tally.wrong)} wrong answers")
    print(f"  {log.count('Traceback')} tracebacks in the log")
    served = sum(count for name, count in tally.results.items() if name.startswith("may: 20"))
    return [*tally.wrong[:10], *([] if served else ["nothing was served"])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", choices=["pids", "memory"], required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spare", type=int, help="threads, or MiB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mirror-scarce-") as directory:
        reasons = asyncio.run(_soak(arguments, Path(directory)))
    print("\n".join(f"FAILED: {reason}" for reason in reasons) or "passed")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
