"""Commands as processes of their own, beside registries in this one."""

import asyncio
import json
import os
import pty
import re
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import limit

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SIZE = (24, 100)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def configured(directory: Path, upstreams: Mapping[str, str], extra: str = "") -> Path:
    """A configuration file with a cache of its own."""
    lines = ["[cache]", f"directory = {json.dumps(str(directory / 'cache'))}", 'min_free = "0"']
    for name, url in upstreams.items():
        lines += [f"[upstreams.{json.dumps(name)}]", f"url = {json.dumps(url)}"]
    file = directory / "mirror.toml"
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n" + extra)
    return file


async def begun(*arguments: str, **streams: Any) -> asyncio.subprocess.Process:
    """Start the command."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MIRROR_")}
    environment |= {"TERM": "xterm-256color"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mirror", *arguments, env=environment, **streams
    )


async def mirror(*arguments: str | Path, stdin: bytes = b"") -> Ended:
    """Run the command to its end, without a terminal."""
    pipe = asyncio.subprocess.PIPE
    process = await begun(*map(str, arguments), stdin=pipe, stdout=pipe, stderr=pipe)
    async with limit():
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


class Terminal:
    """A command on a terminal of its own; ``shown`` is all that came out, without colours."""

    def __init__(self) -> None:
        self.shown = ""
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, _SIZE)

    async def start(self, *arguments: str | Path) -> None:
        self._process = await begun(
            *map(str, arguments),
            stdin=self._slave, stdout=self._slave, stderr=self._slave, start_new_session=True,
        )  # fmt: skip
        os.close(self._slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the last who had it has closed it
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self.shown += _ESCAPES.sub("", data.decode(errors="replace"))

    async def shows(self, pattern: str) -> "re.Match[str]":
        """Wait until something is to be seen."""
        async with limit():
            while not (found := re.search(pattern, self.shown)):
                await asyncio.sleep(0.02)
        return found

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self._process.send_signal(2)

    async def ended(self) -> int:
        async with limit():
            code = await self._process.wait()
            await asyncio.sleep(0.02)  # what it said last is still to be read
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        return code
