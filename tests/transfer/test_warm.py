"""``mirror warm``: images pulled ahead of time, seen from a terminal, a log and the upstream."""

import asyncio
import json
import os
import re
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from mirror.config import load
from mirror.oci.image_name import parse_image
from mirror.oci.platform import Platform
from mirror.oci.reference import parse_repository, parse_tag
from mirror.registry_client.client import MirrorClient, Place, PullError
from mirror.transfer.warm import excess, warm
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of, image, index
from tests.peers.process import free_port
from tests.pull.test_artifacts import attached, descriptor
from tests.running import Answer, eventually, running
from tests.transfer.commands import Terminal, configured, mirror

pytestmark = [pytest.mark.slow]


MIB = 1 << 20
SHARED = random_bytes(MIB, 99)
APPS = [image(SHARED, random_bytes(400_000 + n, n), marker=f"{n:02}") for n in range(20)]
BYTES = MIB + sum(len(blob) for app in APPS for blob in app.blobs if blob != SHARED)


@pytest.fixture
async def registry():
    """Twenty images that share a layer."""
    async with FakeRegistry() as fake:
        for number, app in enumerate(APPS):
            fake.add_image(f"library/app{number}", app, "1")
        yield fake


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names"
    file.write_text("# all of them\n" + "".join(f"app{n}:1 # {n}\n\n" for n in range(20)))
    return file


async def all_hits(directory, upstreams, apps=range(20)):
    """A mirror on that cache, whose upstream is gone, answers for everything."""
    async with running(directory / "cache", upstreams, tags={"max_age": "0s"}) as served:
        for number in apps:
            path = f"/v2/library/app{number}"
            assert (await served.get(f"{path}/manifests/1")).body == APPS[number].manifest
            for digest, blob in zip(APPS[number].digests, APPS[number].blobs, strict=True):
                answer = await served.get(f"{path}/blobs/{digest}")
                assert answer.body == blob
                assert answer.headers["Cache-Status"] == "mirror; hit"


@pytest.mark.long
async def test_bars_on_a_terminal_then_ctrl_c_and_the_next_run_goes_on(tmp_path, registry, names):
    registry.rate = MIB / 4  # far slower than the display of a busy machine
    config = configured(tmp_path, {"docker.io": registry.url})
    terminal = Terminal()
    await terminal.start("warm", "--config", config, "--file", names)
    await terminal.shows(
        r"[1-9] of 20 images .*[━╸╺]+.* \d+\.\d/\d+\.\d MiB +[\d.]+ [KM]iB/s +\d+ s"
    )
    registry.rate = 1000
    await terminal.shows(r"app\d+:1 .*[━╸╺]+")
    terminal.interrupt()
    assert await terminal.ended() == 130
    last = terminal.shown.strip().splitlines()[-1]
    assert (
        last == "mirror: interrupted: what was downloaded stays; run the same command to continue"
    )
    assert "Traceback" not in terminal.shown
    sent = sum(registry.sent.values())
    assert 0 < sent < BYTES * 0.9

    registry.rate = None
    ended = await mirror("warm", "--config", config, "--file", names, "--json")
    assert ended.code == 0, ended.err
    assert sum(registry.sent.values()) < BYTES * 1.1
    assert ended.document["fetched_bytes"] < BYTES - sent * 0.5
    await registry.stop()
    await all_hits(tmp_path, {"docker.io": registry.url})
    await registry.start()


@pytest.mark.long
async def test_plain_lines_in_a_log_and_a_summary(tmp_path, registry, names):
    config = configured(tmp_path, {"docker.io": registry.url})
    ended = await mirror("warm", "--config", config, "--file", names)
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert len(lines) == 20
    for line in lines:
        assert re.fullmatch(r"app\d+:1: 1\.4 MiB, (1\.4 MiB|391 KiB) fetched", line)
    assert ended.out == "20 images: 8.6 MiB fetched, 19 MiB were cached; 0 failed\n"
    assert sum(registry.sent.values()) == BYTES


@pytest.mark.long
async def test_what_is_there_costs_upstream_a_head_per_tag(tmp_path, registry, names):
    """Apart from questions for signatures: they may come later than the image."""
    config = configured(tmp_path, {"docker.io": registry.url})
    assert (await mirror("warm", "--config", config, "--file", names)).code == 0
    registry.seen.clear()
    ended = await mirror("warm", "--config", config, "--file", names, "--json")
    assert (ended.code, ended.document["fetched_bytes"]) == (0, 0)
    heads = [
        seen.path for seen in registry.seen if (seen.kind, seen.method) == ("manifest", "HEAD")
    ]
    assert len([path for path in heads if path.endswith("/1")]) == registry.count("referrers") == 20
    got = [seen.path for seen in registry.seen if (seen.kind, seen.method) == ("manifest", "GET")]
    assert all(path.endswith((".sig", ".att")) for path in got)


@pytest.mark.long
async def test_one_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path, registry):
    config = configured(tmp_path, {"docker.io": registry.url})
    registry.guard = lambda _, path: web.Response(status=403) if "app0/blobs" in path else None
    images = ["app0:1", "app1:nope", "nowhere.example.com/a", "app2:1"]
    ended = await mirror("warm", "--config", config, *images, "--parallel", "1", "--json")
    assert ended.code == 1
    errors = {found["image"]: found["error"] for found in ended.document["images"]}
    assert [name for name, error in errors.items() if error is None] == ["app2:1"]
    assert errors["app0:1"].startswith("docker.io: denies access to library/app0")
    assert errors["app1:nope"] == "docker.io: has no such thing in library/app1"
    assert '[upstreams."nowhere.example.com"]' in errors["nowhere.example.com/a:latest"]
    plain = await mirror("warm", "--config", config, *images)
    assert plain.code == 1
    summary, *failed = plain.out.splitlines()
    assert summary.endswith("; 3 failed")
    assert [line.split(": ")[1] for line in failed] == [
        "app0:1",
        "app1:nope",
        "nowhere.example.com/a:latest",
    ]


@pytest.mark.long
async def test_mistakes_in_a_list_are_told_with_file_and_line_before_anything_is_done(tmp_path):
    file = tmp_path / "list"
    file.write_text("alpine\nAlpine\n\nhttps://alpine\n")
    ended = await mirror("warm", "--cache-dir", tmp_path / "cache", "--file", file)
    assert (ended.code, ended.out) == (2, "")
    first, second = ended.err.splitlines()
    assert first.startswith(f"mirror: {file}:2: 'Alpine' is not the name of a repository")
    assert second == f"mirror: {file}:4: an image is named without a scheme: alpine"
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name an image, such as alpine:3.20, or a list of them with --file"),
        (["a", "--platform", "x"], "'x' is not a platform: os/arch or os/arch/variant"),
        (["a", "--platform", "linux/arm64", "--all-platforms"], "either --platform or"),
    ],
)
async def test_what_cannot_be_meant_is_one_line_and_2(tmp_path, arguments, said):
    ended = await mirror("warm", "--cache-dir", tmp_path / "cache", *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"mirror: {said}")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.long
async def test_a_list_from_stdin_and_a_list_that_is_not_there(tmp_path, registry):
    config = configured(tmp_path, {"docker.io": registry.url})
    ended = await mirror("warm", "--config", config, "--file", "-", stdin=b"app3:1\n")
    assert (ended.code, ended.out[:8]) == (0, "1 image:")
    ended = await mirror("warm", "--config", config, "--file", tmp_path / "no")
    assert (ended.code, ended.err) == (
        1,
        f"mirror: {tmp_path}/no: cannot be read: No such file or directory\n",
    )


# Through the mirror that runs, in this process.


class Silent:
    """Watches, and says nothing."""

    def expected(self, images):
        pass

    def planned(self, wanted, size):
        pass

    def began(self, wanted):
        pass

    def came(self, wanted, size, *, fetched):
        pass

    def ended(self, pulled):
        pass


AMD = Platform.parse("linux/amd64")


async def warmed(tmp_path, registry, names, platforms=(AMD,), **cache):
    tree = {
        "cache": {"directory": str(tmp_path / "cache"), "min_free": "0", **cache},
        "upstreams": {"docker.io": {"url": registry.url}},
    }
    images = [parse_image(name) for name in names]
    return await warm(load(None, tree), images, platforms, 4, Silent())


async def test_a_running_mirror_is_used_and_serves_it_at_once(tmp_path, registry):
    async with running(tmp_path / "cache", {"docker.io": registry.url}) as served:
        (pulled,) = await warmed(tmp_path, registry, ["app5:1"])
        assert pulled.reason == ""
        assert (pulled.fetched, pulled.found) == (sum(map(len, APPS[5].blobs)), 0)
        await registry.stop()
        answer = await served.get(f"/v2/library/app5/blobs/{APPS[5].digests[1]}")
        assert (answer.headers["Cache-Status"], answer.body) == ("mirror; hit", SHARED)
        (pulled,) = await warmed(tmp_path, registry, ["app5:1"])
        assert (pulled.reason, pulled.fetched) == ("", 0)
        figures = await served.metrics()
        hits = {
            name: value for name, value in figures.items() if name.startswith("mirror_requests")
        }
        assert sum(hits.values()) == 1, "what the operator pulls has saved no client anything"
    await registry.start()


async def test_a_process_of_the_mirror_that_is_gone_is_passed_over(tmp_path, registry):
    closed = f"http://127.0.0.1:{free_port()}"
    async with (
        running(tmp_path / "cache", {"docker.io": registry.url}) as served,
        aiohttp.ClientSession(closed) as gone,
        aiohttp.ClientSession(served.url) as there,
    ):
        place = Place("docker.io", parse_repository("library/app4"))
        pulled = await MirrorClient([gone, there]).manifest(place, parse_tag("1"))
        assert pulled.body == APPS[4].manifest
        with pytest.raises(PullError, match="the mirror does not answer: "):
            await MirrorClient([gone]).manifest(place, parse_tag("1"))


async def test_an_image_pulled_while_clients_pull_it_comes_from_upstream_once(tmp_path, registry):
    registry.hold(128 * 1024)
    async with running(tmp_path / "cache", {"docker.io": registry.url}) as served:
        path = f"/v2/library/app6/blobs/{APPS[6].digests[2]}"
        warming = asyncio.create_task(warmed(tmp_path, registry, ["app6:1"]))
        asking = asyncio.create_task(served.get(path))
        await eventually(served, "mirror_clients_waiting", 3)
        registry.release()
        (pulled,), answer = await warming, await asking
    assert (pulled.reason, answer.body) == ("", APPS[6].blobs[2])
    assert registry.sent[APPS[6].digests[2]] == len(APPS[6].blobs[2])


async def test_a_body_that_breaks_off_is_gone_on_with(tmp_path, registry):
    registry.faults.append(Fault("blob", "GET", cut=200_000, times=2))
    (pulled,) = await warmed(tmp_path, registry, ["app7:1"])
    assert pulled.reason == ""
    assert (pulled.fetched, pulled.found) == (sum(map(len, APPS[7].blobs)), 0)


async def test_wrong_bytes_are_told_and_not_kept(tmp_path, registry):
    registry.faults.append(Fault("blob", "GET", flip=5, times=99))
    (pulled,) = await warmed(tmp_path, registry, ["app7:1"])
    assert "download interrupted, 3 times: upstream fails or sends wrong bytes" in pulled.reason
    registry.faults.clear()
    (pulled,) = await warmed(tmp_path, registry, ["app7:1"])
    assert (pulled.reason, pulled.found) == ("", 0)


async def test_what_does_not_fit_is_told(tmp_path, registry):
    (pulled,) = await warmed(tmp_path, registry, ["app8:1"], max_size="600KiB")
    assert "could not be stored: check max_size, min_free and the disk" in pulled.reason


async def test_more_than_the_cache_may_hold_is_told(tmp_path, registry):
    tree = {"cache": {"directory": str(tmp_path / "cache"), "min_free": "0", "max_size": "1500KiB"}}
    config = load(None, {**tree, "upstreams": {"docker.io": {"url": registry.url}}})
    images = [parse_image(name) for name in ("app1:1", "app2:1")]
    result = await warm(config, images, [AMD], 1, Silent())
    assert excess(config, result).startswith(
        "the images have 1.8 MiB in total, and the cache holds"
    )
    assert excess(config, result[:1]) == ""


async def test_root_writes_nothing_that_the_mirrors_own_user_could_not_read(tmp_path, registry):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 54321, 54321)
    with pytest.raises(UserError, match="is #54321's, who could not read what root writes"):
        await warmed(tmp_path, registry, ["app1:1"])
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_held_tag_is_not_taken_for_one_that_upstream_does_not_confirm(tmp_path, registry):
    tree = {"cache": {"directory": str(tmp_path / "cache"), "min_free": "0"}}
    rule = {"images": ["**"], "cooldown": "3d", "unseen": "allow"}
    upstreams = {"docker.io": {"url": registry.url}}
    config = load(None, {**tree, "upstreams": upstreams, "policy": [rule]})
    for number in (1, 2, 2):  # the last time upstream confirms what the second has asked
        registry.add_image("library/app1", APPS[number], "1")
        (pulled,) = await warm(config, [parse_image("app1:1")], [AMD], 1, Silent())
        assert pulled.plan is not None
        assert (str(pulled.plan.root.digest), pulled.plan.stale) == (APPS[1].digest, False)


async def test_with_upstream_gone_a_tag_is_taken_as_last_known(tmp_path, registry):
    await warmed(tmp_path, registry, ["app9:1"])
    await registry.stop()
    known, unknown = await warmed(tmp_path, registry, ["app9:1", "app10:1"])
    assert (known.reason, known.plan.stale) == ("", True)
    assert unknown.reason.startswith("docker.io: ")
    await registry.start()


PLATFORMS = {"linux/amd64": 11, "linux/arm64/v8": 12, "linux/arm/v7": 13, "unknown/unknown": 14}


def add_index(registry):
    document = json.loads(index(*(APPS[number] for number in PLATFORMS.values())))
    for entry, platform in zip(document["manifests"], PLATFORMS, strict=True):
        keys = ("os", "architecture", "variant")
        entry["platform"] = dict(zip(keys, platform.split("/"), strict=False))
    for number in PLATFORMS.values():
        registry.add_image("library/multi", APPS[number])
    body = json.dumps(document).encode()
    return registry.add_manifest("library/multi", body, OCI_INDEX, "1")


@pytest.mark.parametrize(
    ("platforms", "numbers"),
    [
        (["linux/amd64"], [11]),
        (["linux/arm64", "linux/arm"], [12, 13]),
        ([], [11, 12, 13, 14]),
    ],
)
async def test_of_an_index_the_chosen_platforms_come(tmp_path, registry, platforms, numbers):
    digest = add_index(registry)
    wanted = [Platform.parse(name) for name in platforms]
    (pulled,) = await warmed(tmp_path, registry, ["multi:1"], wanted)
    assert (pulled.reason, str(pulled.plan.root.digest)) == ("", digest)
    blobs = {digest_of(blob) for number in numbers for blob in APPS[number].blobs}
    assert set(registry.sent) == blobs
    assert {str(name) for name in pulled.plan.manifests} == {
        digest,
        *(APPS[number].digest for number in numbers),
    }


async def test_a_platform_that_is_not_there_is_told_with_those_that_are(tmp_path, registry):
    add_index(registry)
    (pulled,) = await warmed(tmp_path, registry, ["multi:1"], [Platform.parse("linux/s390x")])
    assert pulled.reason == (
        "docker.io/library/multi:1: there is none for linux/s390x, "
        "only for linux/amd64, linux/arm, linux/arm64"
    )


SBOM = "application/spdx+json"
STALE = {"max_age": "0s", "negative_max_age": "0s"}


@pytest.mark.parametrize("api", [True, False])
async def test_what_is_attached_is_known_with_upstream_gone(tmp_path, registry, api):
    """What Docker 29.1, cosign and oras ask for; some fail if it is neither there nor missing."""
    registry.referrers_api, app, sbom = api, APPS[0], b'{"spdxVersion": "SPDX-2.3"}'
    artifact = attached(app.manifest, SBOM, sbom)
    tag, repository = app.digest.replace(":", "-"), "library/app0"
    for blob in (b"{}", sbom):
        registry.add_blob(blob)
    attested = registry.add_manifest(repository, artifact, OCI_MANIFEST)
    signature = image(b"signature")
    registry.add_image(repository, signature, f"{tag}.sig")
    if not api:
        listed = {"manifests": [descriptor(artifact, OCI_MANIFEST, artifactType=SBOM)]}
        body = json.dumps({"schemaVersion": 2, **listed}).encode()
        registry.add_manifest(repository, body, OCI_INDEX, tag)
    await warmed(tmp_path, registry, ["app0:1"])
    await registry.stop()
    async with running(tmp_path / "cache", {"docker.io": registry.url}, tags=STALE) as served:

        async def get(path: str) -> Answer:
            return await served.get(f"/v2/{repository}/{path}")

        for query in ("", f"?artifactType={quote(SBOM, safe='')}", "?artifactType=x"):
            answer = await get(f"referrers/{app.digest}{query}")
            assert (answer.status, attested in answer.body.decode()) == (
                (200, True) if api else (404, False)
            )
        assert api or (await get(f"manifests/{tag}")).status == 200
        for wanted in (f"{tag}.sig", attested):
            assert (await get(f"manifests/{wanted}")).status == 200
        assert (await get(f"manifests/{tag}.att")).status == 404
        for digest in (digest_of(sbom), *signature.digests):
            assert (await get(f"blobs/{digest}")).status == 200
        for below in (attested, signature.digest):
            assert (await get(f"referrers/{below}")).status == (200 if api else 404)
    await registry.start()


async def test_attestations_come_with_the_platforms_that_they_are_about(tmp_path, registry):
    body = json.loads(index(APPS[11], APPS[12], APPS[13], APPS[14]))
    for entry, system in zip(
        body["manifests"], ["linux", "linux", "unknown", "unknown"], strict=True
    ):
        entry["platform"] = {"os": system, "architecture": "unknown"}
    for entry, (architecture, about) in zip(
        body["manifests"],
        [("amd64", None), ("arm64", None), ("unknown", 11), ("unknown", 12)],
        strict=True,
    ):
        entry["platform"]["architecture"] = architecture
        if about:
            entry["annotations"] = {"vnd.docker.reference.digest": APPS[about].digest}
    for number in (11, 12, 13, 14):
        registry.add_image("library/multi", APPS[number])
    root = registry.add_manifest("library/multi", json.dumps(body).encode(), OCI_INDEX, "1")
    (pulled,) = await warmed(tmp_path, registry, ["multi:1"], [Platform.parse("linux/amd64")])
    assert {str(name) for name in pulled.plan.manifests} == {root, APPS[11].digest, APPS[13].digest}
