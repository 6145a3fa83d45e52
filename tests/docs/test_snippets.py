"""The snippets of the pages: each is run, loaded or parsed, or says on the line before why not.

``<!-- not run: reason -->`` marks a snippet that cannot run here; its `mirror` commands are still
parsed. ``<!-- output -->`` marks text without commands.
"""

import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import typer
import yaml

from mirror.cli import root
from mirror.config import load
from tests.cli.test_images import for_platform
from tests.docs.test_pages import PAGES, ROOT
from tests.fakes import FakeRegistry, random_bytes
from tests.fakes.content import Image
from tests.fakes.signing import Signer
from tests.fakes.sigstore import Sigstore
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import limit

pytestmark = [pytest.mark.long]

_FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>.+?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_PROMPT = re.compile(r"\$ (.+)")
_FIGURE = re.compile(r"\d[\d.,:-]*( (%|B|KiB|MiB|GiB)(?!\w))?")
_TIME = re.compile(r"just now|\d+ (second|minute|hour|day)s? ago")
#: By tests/e2e: nginx by test_nginx.py and test_several_mirrors.py, promql by test_prometheus.py;
#: mermaid by a browser.
_ELSEWHERE = {"nginx", "promql", "mermaid"}
_FILES = re.compile(r'(?<=")(/etc|/run/secrets)(?=/)')


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    place: str
    language: str
    mark: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """What is typed, and what is printed then."""
        found: list[tuple[str, list[str]]] = []
        for line in self.lines:
            if typed := _PROMPT.fullmatch(line):
                found.append((typed[1], []))
            elif found:
                found[-1][1].append(line)
        return found

    @property
    def is_run(self) -> bool:
        return self.language == "console" and not self.mark


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
            yield Snippet(place, match["language"], match["mark"] or "", tuple(lines))


ALL = list(snippets())


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [each for each in ALL if each.language in languages and each.mark != "output"]
    return pytest.mark.parametrize("snippet", chosen, ids=lambda each: each.place)


def test_each_snippet_is_of_a_kind_that_is_tested_and_each_mark_says_why() -> None:
    assert len(ALL) > 40
    assert {each.language for each in ALL} <= {"console", "toml", "json", "yaml", *_ELSEWHERE}
    marks = {each.mark for each in ALL} - {"", "output"}
    assert [mark for mark in marks if not re.fullmatch(r"not run: .+", mark)] == []


@of("toml")
def test_a_configuration_can_be_used(snippet: Snippet, tmp_path: Path) -> None:
    for line in snippet.lines:
        for name in re.findall(r'"((?:/etc|/run/secrets)/[^"]+)"', line):
            (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            known = {".pub": Signer().pem, ".json": json.dumps(Sigstore().root).encode()}
            content = known.get(Path(name).suffix, b"text" * 16)
            (tmp_path / name[1:]).write_bytes(content)
    file = tmp_path / "mirror.toml"
    file.write_text(_FILES.sub(rf"{tmp_path}\1", snippet.text))
    load(file)


@of("json")
def test_a_json_document_can_be_read(snippet: Snippet) -> None:
    json.loads(snippet.text)


@of("yaml")
def test_a_yaml_document_can_be_read(snippet: Snippet) -> None:
    assert isinstance(yaml.safe_load(snippet.text), dict)


def _typed() -> Iterator[tuple[str, str]]:
    for snippet in ALL:
        if snippet.language == "console" and snippet.mark != "output":
            yield from ((snippet.place, command) for command, _ in snippet.commands)
    for page in PAGES:
        prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for command in re.findall(r"`(mirror [a-z][^`]*)`", prose):
            yield str(page.relative_to(ROOT)), command


def _commands_of_mirror() -> Iterator[tuple[str, list[str]]]:
    for place, line in _typed():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in {"|", "&&", ">"}:
                words += [word] if words or "=" not in word else []  # no variables before it
                continue
            if words and words[0] == "mirror":
                yield place, words[1:]
            words = []


def test_the_command_line_knows_each_command_and_its_options() -> None:
    found = list(_commands_of_mirror())
    assert len(found) > 30
    for place, words in found:
        command: Any = typer.main.get_command(root.app)
        arguments = [word for word in words if word != "..."]
        while arguments and (known := getattr(command, "commands", None)):
            name = arguments.pop(0)
            assert name in known, f"{place}: there is no {name!r} in {words}"
            command = known[name]
        if len(words) == 1 or hasattr(command, "commands"):
            continue  # a command that is only named
        try:
            command.make_context("mirror", arguments)
        except Exception as error:
            pytest.fail(f"{place}: {words}: {error}")


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[MirrorProcess]:
    """A running mirror whose cache has the images that the pages show."""
    need("curl", "jq")
    async with FakeRegistry() as hub, FakeRegistry() as other:
        made = [for_platform("amd64", random_bytes(1_300_000 * n, n)) for n in range(1, 6)]
        hub.add_image("library/alpine", made[0], "3.20")
        hub.add_image("library/nginx", made[1], "1.27-alpine")
        other.add_image("dotnet/sdk", made[2], "8.0")
        hub.add_image("library/app1", made[3], "1")
        hub.add_image("library/app2", made[4], "1")
        upstreams = {"docker.io": hub.url, "mcr.microsoft.com": other.url}
        mirror = MirrorProcess(tmp_path, upstreams, extra='[proxy]\nlisten = "127.0.0.1:0"\n')
        await asyncio.to_thread(mirror.start)
        (tmp_path / "images.txt").write_text("alpine:3.20\n")
        plant_machine(tmp_path / "machine", mirror.port, free_port())
        try:
            for _ in range(2):
                await pull(mirror, "library/alpine", "3.20", made[0])
                await pull(mirror, "library/nginx", "1.27-alpine", made[1])
                await pull(mirror, "mcr.microsoft.com/dotnet/sdk", "8.0", made[2])
            yield mirror
        finally:
            await asyncio.to_thread(mirror.terminate)


def plant_machine(root: Path, port: int, wrong: int) -> None:
    """The files of clients, one of them with a wrong port, where nothing listens."""
    daemon = root / "etc/docker/daemon.json"
    hosts = root / "etc/containerd/certs.d/docker.io/hosts.toml"
    config = root / "etc/containerd/config.toml"
    for file in (daemon, hosts):
        file.parent.mkdir(parents=True)
    config.write_text(
        "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n"
        'config_path = "/etc/containerd/certs.d"\n'
    )
    daemon.write_text(json.dumps({"registry-mirrors": [f"http://127.0.0.1:{wrong}"]}))
    hosts.write_text(
        f'server = "https://docker.io"\n[host."http://127.0.0.1:{port}"]\n'
        'capabilities = ["pull", "resolve"]\n'
    )


async def pull(mirror: MirrorProcess, repository: str, tag: str, image: Image) -> None:
    paths = [f"manifests/{tag}", *(f"blobs/{digest}" for digest in image.digests)]
    async with aiohttp.ClientSession(f"{mirror.url}/v2/{repository}/") as session:
        for path in paths:
            async with session.get(path) as answer:
                assert answer.status == 200
                await answer.read()


async def run(mirror: MirrorProcess, command: str) -> str:
    """Have a shell do what a page says, with this mirror in the place of the one it names."""
    command = command.replace("localhost:5000", mirror.url)
    command = command.replace(
        "doctor --url http://mirror.example.com:5000", f"doctor --root machine --url {mirror.url}"
    )
    command = command.replace("--write /", '--write "$(mktemp -d)"')
    command = re.sub(r"> /etc/\S*", "> out", command)
    environment = {name: value for name, value in os.environ.items() if name[:7] != "MIRROR_"}
    environment |= {
        "MIRROR_CONFIG": str(mirror.directory / "mirror.toml"),
        "TMPDIR": str(mirror.directory),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", f"set -o pipefail; {command}",
        cwd=mirror.directory, env=environment, stdout=pipe, stderr=pipe,
    )  # fmt: skip
    async with limit():
        out, err = await process.communicate()
    expected = 1 if "mirror doctor" in command else 0  # the machine has a mistake
    assert process.returncode == expected, f"{command}: {err.decode()}"
    return out.decode()


def shape(printed: str) -> list[str]:
    """Lines without their figures and times, and without the host of a mirror."""
    printed = re.sub(r"mirror\.example\.com|127\.0\.0\.1", "HOST", printed)
    printed = _TIME.sub("N ago", printed)
    return [" ".join(_FIGURE.sub("N", line).split()) for line in printed.splitlines()]


@pytest.mark.e2e
@pytest.mark.timeout(900)  # some twenty commands, one after another
async def test_commands_print_what_the_pages_show(office: MirrorProcess) -> None:
    tried = 0
    for snippet in ALL:
        for command, printed in snippet.commands if snippet.is_run else ():
            shown = shape("\n".join(printed))
            out = shape(await run(office, command))
            assert not shown or out == shown, f"{snippet.place}: {command}"
            tried += 1
    assert tried > 10


@pytest.mark.e2e
@pytest.mark.timeout(900)
async def test_the_fields_of_json_are_those_that_the_page_names(office: MirrorProcess) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `(ls|rm|stats|verify)` \| (.+) \|$", text, re.MULTILINE))
    assert len(named) == 4
    arguments = {"rm": "alpine:3.20 --dry-run"}
    for command, row in named.items():
        out = await run(office, f"mirror {command} {arguments.get(command, '')} --json")
        fields = set(re.findall(r"`(\w+)`", row))
        document = json.loads(out)
        below = document["total"] if command == "stats" else _keys(document)
        assert {*document, *below} <= fields, command


def _keys(value: object) -> Iterator[str]:
    """The names of fields at any depth."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)
