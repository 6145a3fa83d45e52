"""Layers as they are packed today, and signatures, by real clients through the mirror."""

import base64
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_clients import HUB, SECOND, Ctr, Office, Podman, Skopeo, blob_reads
from tests.fakes.content import digest_of
from tests.peers.distribution import Distribution
from tests.peers.image import push
from tests.peers.layers import estargz_layer, image_of, read_lazily, signature_of, zstd_layer
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
LINE = 3 * MIB  # bytes a second from upstream, where it is slow


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """Two registries; the line to the second one is slow."""
    need("docker-registry", "zstd", "openssl", root=True)
    directory = tmp_path_factory.mktemp("artifacts")
    hub, second = Distribution(directory / "hub"), Distribution(directory / "second")
    extra = f'max_rate = "{LINE}"\n[tags]\nmax_age = "100ms"\n'
    mirror = MirrorProcess(directory / "mirror", {HUB: hub.url, SECOND: second.url}, extra)
    for peer in (hub, second, mirror):
        peer.start()
    yield Office(directory, hub, second, mirror)
    mirror.terminate()
    hub.stop()
    second.stop()


@pytest.mark.long
@pytest.mark.parametrize(("made", "programs"), [(Podman, ["podman"]), (Ctr, ["ctr", "containerd"])])
def test_layers_of_every_packing_are_pulled_cold_warm_and_offline(
    branch: Office, made: type[Podman | Ctr], programs: list[str]
):
    need(*programs, root=True)
    name = made.__name__.lower()
    files = {"bin/busybox": Path("/bin/busybox").read_bytes(), "marker": name.encode()}
    layers = [zstd_layer(files), estargz_layer({"noise": os.urandom(MIB)})]
    push(branch.hub.url, f"team/{name}", image_of(layers, ["/bin/busybox", "true"]), "1")
    client = made(branch, branch.directory / name)
    client.start()
    try:
        client.get(f"{HUB}/team/{name}:1")
        asked = blob_reads(branch.hub, f"team/{name}")
        assert len(asked) == len(set(asked)) == 3, "config and layers, each once"
        client.drop(f"{HUB}/team/{name}:1")
        client.get(f"{HUB}/team/{name}:1")
        client.drop(f"{HUB}/team/{name}:1")
        branch.hub.stop()
        client.get(f"{HUB}/team/{name}:1")
        client.drop(f"{HUB}/team/{name}:1")
        branch.hub.start()
        assert blob_reads(branch.hub, f"team/{name}") == asked
    finally:
        client.stop()


@pytest.mark.long
def test_a_file_of_an_estargz_layer_is_read_long_before_the_layer_is_here(branch: Office):
    files = {f"noise{at}": os.urandom(MIB) for at in range(32)}
    layer = estargz_layer(files | {"wanted": b"the file that somebody opens" * 1000})
    push(branch.second.url, "team/lazy", image_of([layer], ["/wanted"]), "1")
    where = f"{branch.mirror.url}/v2/team/lazy/blobs/{digest_of(layer.packed)}?ns={SECOND}"

    def fetch(start: int, stop: int) -> bytes:
        wanted = urllib.request.Request(where, headers={"Range": f"bytes={start}-{stop - 1}"})
        with urllib.request.urlopen(wanted, timeout=LIMIT_SECONDS) as answer:
            assert answer.status == 206
            return bytes(answer.read())

    assert read_lazily(layer, fetch, "wanted") == b"the file that somebody opens" * 1000
    assert branch.mirror.metrics()["mirror_fills_in_progress"] == 1, "it is not here yet"
    with urllib.request.urlopen(where, timeout=LIMIT_SECONDS) as answer:
        assert digest_of(answer.read()) == digest_of(layer.packed)
    asked = branch.second.blob_requests()
    assert read_lazily(layer, fetch, "noise7") == files["noise7"]
    assert branch.second.blob_requests() == asked
    assert asked <= 6, "the upload's checks, the fill, and what lay ahead of it"


@pytest.mark.long
def test_a_signature_is_found_by_its_tag_and_verifies_also_offline(branch: Office):
    """Where cosign looks: no referrers API (distribution 2.8), so the tag sha256-<hex>.sig."""
    need("skopeo", root=True)
    key, public = branch.directory / "key.pem", branch.directory / "public.pem"
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    openssl("pkey", "-in", str(key), "-pubout", "-out", str(public))
    app = image_of([zstd_layer({"signed": b"yes"})], ["/signed"])
    push(branch.hub.url, "team/signed", app, "1")
    tag = app.digest.replace(":", "-") + ".sig"
    push(branch.hub.url, "team/signed", signature_of(app, f"{HUB}/team/signed", str(key)), tag)
    skopeo = Skopeo(branch, branch.directory / "signed")
    skopeo.start()

    def verify() -> None:
        referrers = f"{branch.mirror.url}/v2/team/signed/referrers/{app.digest}"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(referrers, timeout=LIMIT_SECONDS)
        skopeo.get(f"{HUB}/team/signed:{tag}")
        (layer,) = json.loads((skopeo.copy / "manifest.json").read_text())["layers"]
        payload = skopeo.copy / layer["digest"].partition(":")[2]
        signed = json.loads(payload.read_text())["critical"]["image"]["docker-manifest-digest"]
        assert signed == app.digest
        encoded = layer["annotations"]["dev.cosignproject.cosign/signature"]
        signature = branch.directory / "signature"
        signature.write_bytes(base64.b64decode(encoded))
        openssl("dgst", "-sha256", "-verify", str(public), "-signature", str(signature), payload)
        skopeo.drop(tag)

    try:
        verify()
        cold = branch.hub.blob_requests()
        branch.hub.stop()
        verify()
        branch.hub.start()
        assert branch.hub.blob_requests() == cold
    finally:
        skopeo.stop()


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
