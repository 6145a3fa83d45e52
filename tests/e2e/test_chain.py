"""A mirror behind a mirror, as processes of their own: a branch office and its headquarters."""

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.test_clients import SECOND, Office, Skopeo, blob_reads
from tests.fakes.content import image
from tests.peers.distribution import Distribution
from tests.peers.image import push
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
SHORT = '[tags]\nmax_age = "1ms"\n'


@dataclass
class Chain:
    """The registry, the headquarters' mirror of it, and the branch's mirror of that one."""

    origin: Distribution
    first: MirrorProcess
    second: MirrorProcess


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    need("docker-registry", "skopeo", root=True)
    origin = Distribution(tmp_path / "origin")
    first = MirrorProcess(tmp_path / "first", {SECOND: origin.url}, SHORT)
    behind = f'mirrors = ["{first.url}/{SECOND}"]\n{SHORT}'
    nowhere = "http://127.0.0.1:9"  # the branch has no other way to the registry
    second = MirrorProcess(tmp_path / "second", {SECOND: nowhere}, behind)
    with contextlib.ExitStack() as stack:
        origin.start()
        stack.callback(origin.stop)
        for mirror in (first, second):
            mirror.start()
            stack.callback(mirror.terminate)
        yield Chain(origin, first, second)


@pytest.mark.long
def test_a_client_of_the_second_mirror_is_served_while_less_and_less_is_there(
    chain: Chain, tmp_path: Path
):
    app = image(os.urandom(8 * MIB), os.urandom(1000))
    push(chain.origin.url, "team/app", app, "1")
    pushed = blob_reads(chain.origin, "team/app")
    blob = f"{chain.second.url}/v2/team/app/blobs/{app.digests[1]}?ns={SECOND}"
    with urllib.request.urlopen(urllib.request.Request(blob, method="HEAD")) as head:
        assert head.headers["Content-Length"] == str(8 * MIB), "nobody has pulled it yet"

    office = Office(tmp_path, chain.origin, chain.origin, chain.second)
    skopeo = Skopeo(office, tmp_path / "skopeo")
    skopeo.start()
    with contextlib.ExitStack() as stack:
        stack.callback(skopeo.stop)

        def pull() -> None:
            skopeo.get(f"{SECOND}/team/app:1")
            assert (skopeo.copy / "manifest.json").read_bytes() == app.manifest
            for digest, data in zip(app.digests, app.blobs, strict=True):
                assert (skopeo.copy / digest.partition(":")[2]).read_bytes() == data
            skopeo.drop("")

        pull()
        asked = blob_reads(chain.origin, "team/app")[len(pushed) :]
        gets = [path for method, path in asked if method == "GET"]
        assert len(gets) == len(set(gets)) == 3, "each blob once"
        pull()
        chain.origin.stop()
        pull()
        chain.first.terminate()
        pull()
        chain.origin.start()
        assert blob_reads(chain.origin, "team/app")[len(pushed) :] == asked
        assert not any("ns=" in path for _, path in chain.origin.requests())
