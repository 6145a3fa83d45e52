"""A machine to be examined: its files, and a Docker daemon that answers /info."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from mirror.clients import Snippet
from mirror.doctor import Report, Verdict, examine


@dataclass(frozen=True)
class Machine:
    """The root directory of a machine."""

    root: Path

    def plant(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def plant_snippet(self, snippet: Snippet) -> None:
        self.plant({file.path: file.text for file in snippet.files})

    async def examined(
        self, url: str | None, own: str = "http://127.0.0.1:1", containerd_version: str = ""
    ) -> Report:
        return await examine(self.root, url, own, containerd_version=containerd_version)

    @asynccontextmanager
    async def daemon(self, **info: Any) -> AsyncIterator[None]:
        """A Docker daemon; by default one of today that knows no mirror."""
        answer = {
            "ServerVersion": "29.0.1",
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
            "RegistryConfig": {"Mirrors": None, "InsecureRegistryCIDRs": ["127.0.0.0/8"]},
            **info,
        }

        async def handle(_: web.BaseRequest) -> web.Response:
            return web.json_response(answer)

        (self.root / "run").mkdir(exist_ok=True)
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.UnixSite(runner, str(self.root / "run/docker.sock")).start()
        try:
            yield
        finally:
            await runner.cleanup()


CLASSIC: dict[str, Any] = {"ServerVersion": "24.0.7", "DriverStatus": [["Backing", "extfs"]]}


def wrongs(report: Report) -> list[str]:
    """What is wrong, each with how to fix it."""
    found = [finding for finding in report.findings if finding.verdict is Verdict.WRONG]
    assert all(finding.fix for finding in found)
    return [f"{finding.where}: {finding.what}" for finding in found]


def registries(*mirrors: str, **others: Any) -> dict[str, Any]:
    """RegistryConfig of /info."""
    return {"Mirrors": [f"{url}/" for url in mirrors], **others}
