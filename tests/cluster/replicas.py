"""Several mirrors of one cluster in this process, and the Redis that they share."""

import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakes import FakeRegistry
from tests.peers.process import Process, accepts, free_port
from tests.running import Mirror, configured, running

#: How long the mirrors of a test wait for Redis, on a machine that may be busy.
PATIENCE_SECONDS = 30.0
SECRET = "0123456789abcdef" * 4


class Redis:
    """A redis-server on a port of its own, which forgets all when it ends."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._log = directory / "redis.log"
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1")
        self._process = Process(["redis-server", "--port", str(self.port), *options], self._log)
        self._process.wait_until(lambda: accepts(self.port))

    def stop(self) -> None:
        self.resume()
        self._process.terminate()

    def freeze(self) -> None:
        """Let it accept connections and answer nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        with suppress(ProcessLookupError):  # it was stopped
            os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def running_redis(directory: Path) -> Iterator[Redis]:
    redis = Redis(directory)
    try:
        yield redis
    finally:
        redis.stop()


class Replicas:
    """Mirrors of one cluster; each can be stopped by itself."""

    def __init__(self, directory: Path, registry: FakeRegistry, count: int, **cluster: Any) -> None:
        """Keys of ``[cluster]`` are given as in the file; ``upstream`` has those of docker.io."""
        self._directory = directory
        self._upstream = {"url": registry.url, **cluster.pop("upstream", {})}
        self.secret = directory / "secret"
        self.secret.write_text(SECRET)
        self._cluster = cluster
        self.addresses = [f"http://127.0.0.1:{free_port()}" for _ in range(count)]
        self.mirrors: list[Mirror] = []
        self._stacks: list[AsyncExitStack] = []

    async def start(self, peers: Sequence[str] | None = None, **sections: Any) -> Mirror:
        """Start the next replica; ``peers`` are the others that it knows, by default all."""
        number = len(self.mirrors)
        stack = AsyncExitStack()
        directory, upstreams = self._place(number)
        mirror = await stack.enter_async_context(
            running(directory, upstreams, **{**self._sections(number, peers), **sections})
        )
        self.mirrors.append(mirror)
        self._stacks.append(stack)
        return mirror

    async def reload(self, number: int, peers: Sequence[str] | None = None, **cluster: Any) -> None:
        """Give a replica another configuration."""
        directory, upstreams = self._place(number)
        sections = self._sections(number, peers, **cluster)
        await self.mirrors[number].reload(configured(directory, upstreams, **sections))

    def _place(self, number: int) -> tuple[Path, dict[str, Any]]:
        return self._directory / f"cache{number}", {"docker.io": self._upstream}

    def _sections(
        self, number: int, peers: Sequence[str] | None = None, **cluster: Any
    ) -> dict[str, Any]:
        address = self.addresses[number]
        table = {
            "secret_file": str(self.secret),
            "state_timeout": f"{PATIENCE_SECONDS:.0f}s",
            "advertise": address,
            "peers": list(self.addresses if peers is None else peers),
            **self._cluster,
            **cluster,
        }
        return {
            "server": {"listen": address.removeprefix("http://")},
            "cluster": table,
            "fill": {"connections": 1},  # a busy machine is no slow line
        }

    async def stop(self, number: int) -> None:
        await self._stacks[number].aclose()

    async def close(self) -> None:
        for stack in self._stacks:
            await stack.aclose()


@asynccontextmanager
async def replicas(
    directory: Path, registry: FakeRegistry, count: int = 3, **cluster: Any
) -> AsyncIterator[Replicas]:
    """Run a cluster; see :class:`Replicas`."""
    running = Replicas(directory, registry, count, **cluster)
    try:
        for _ in range(count):
            await running.start()
        yield running
    finally:
        await running.close()
