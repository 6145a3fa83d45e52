"""Debian's nginx in front, as docs/deployment.md says it: TLS outside, a unix socket inside."""

import asyncio
import json
import re
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.fakes import image, random_bytes
from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS, until

pytestmark = [pytest.mark.e2e]

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
APP = image(random_bytes(8 << 20))
NGINX = """\
daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    {snippet}
}}
"""


@dataclass
class Office:
    """A mirror behind nginx."""

    directory: Path
    port: int

    async def pull(self, to: str) -> None:
        """Have skopeo copy the image."""
        source = f"docker://127.0.0.1:{self.port}/library/app:1"
        certificates = ["--src-cert-dir", str(self.directory / "ca")]
        command = ["skopeo", "--insecure-policy", "copy", *certificates, source]
        copied = await asyncio.to_thread(
            subprocess.run, [*command, f"dir:{self.directory / to}"],
            capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
        assert copied.returncode == 0, copied.stderr

    async def status(self, **fields: str) -> int:
        context = ssl.create_default_context(cafile=str(self.directory / "ca" / "ca.crt"))
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        url = f"https://127.0.0.1:{self.port}/v2/"
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers, ssl=context) as answer,
        ):
            return answer.status

    def clients(self) -> set[str]:
        """Those in the mirror's log."""
        lines = (self.directory / "log").read_text().rpartition("\n")[0].splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return {line["client"] for line in told if line["logger"] == "mirror.access"}


def snippet(language: str, directory: Path) -> str:
    """What the page has, with the files of this test."""
    section = PAGE.partition("## Reverse proxies")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    text = found[1]
    for name in ("/run/mirror/mirror.sock", "/etc/ssl/mirror.crt", "/etc/ssl/mirror.key"):
        text = text.replace(name, str(directory / Path(name).name))
    return text


def write_certificate(directory: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(directory / "mirror.key"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "mirror.crt"))
    (directory / "ca").mkdir()
    authority.cert_pem.write_to_path(str(directory / "ca" / "ca.crt"))


@asynccontextmanager
async def office(directory: Path, upstream: str, networks: list[str]):
    need("nginx", "skopeo")
    write_certificate(directory)
    file, conf, port = directory / "mirror.toml", directory / "nginx.conf", free_port()
    file.write_text(
        snippet("toml", directory) + f'lame_duck = "0s"\ndrain = "1s"\n[log]\nformat = "json"\n'
        f"[access]\nnetworks = {json.dumps(networks)}\n"
        f'[cache]\ndirectory = "{directory}/cache"\nmin_free = "0"\n'
        f'[upstreams."docker.io"]\nurl = "{upstream}"\n'
    )
    inside = snippet("nginx", directory).replace("listen 443", f"listen 127.0.0.1:{port}")
    conf.write_text(NGINX.format(directory=directory, snippet=inside))
    command = [sys.executable, "-m", "mirror", "serve", "--config", str(file)]
    mirror = Process(command, directory / "log")
    nginx = Process(["nginx", "-e", f"{directory}/errors", "-c", str(conf)], directory / "nginx")
    try:
        await asyncio.to_thread(mirror.wait_until, lambda: "listens on unix:" in mirror.output())
        await asyncio.to_thread(nginx.wait_until, lambda: accepts(port))
        yield Office(directory, port)
    finally:
        nginx.terminate()
        assert mirror.terminate() == 0


@pytest.mark.long
async def test_an_image_comes_through_and_the_log_has_the_client(tmp_path, upstream):
    upstream.add_image("library/app", APP, "1")
    async with office(tmp_path, upstream.url, ["127.0.0.1"]) as front:
        await front.pull("cold")
        blobs = upstream.count("blob")
        await front.pull("warm")
        assert upstream.count("blob") == blobs == 2
        layer = APP.digests[1].removeprefix("sha256:")
        assert (tmp_path / "cold" / layer).read_bytes() == APP.blobs[1]
        assert (tmp_path / "warm" / layer).read_bytes() == APP.blobs[1]
        await until(front.clients)
        assert front.clients() == {"127.0.0.1"}
        assert not any((tmp_path / "proxy").rglob("*")), "nginx keeps no copy"


@pytest.mark.long
async def test_networks_are_those_of_the_client_whatever_it_says_of_itself(tmp_path, upstream):
    async with office(tmp_path, upstream.url, ["192.0.2.0/24"]) as front:
        assert await front.status() == 403
        assert await front.status(X_Forwarded_For="192.0.2.1") == 403
        assert await front.status(Forwarded="for=192.0.2.1") == 403
        await until(front.clients)
        assert front.clients() == {"127.0.0.1"}
