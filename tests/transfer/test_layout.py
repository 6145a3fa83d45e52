"""``mirror export`` and ``mirror import``: images carried by file, and files that are none."""

import asyncio
import contextlib
import fcntl
import json
import os
import struct
import tarfile
import termios
import tracemalloc
from asyncio.subprocess import PIPE
from io import BytesIO
from typing import BinaryIO

import pytest

from mirror.config import load
from mirror.oci.image_name import parse_image
from mirror.oci.platform import Platform
from mirror.transfer.export import export
from mirror.transfer.imports import import_layout
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of, index
from tests.peers.process import free_port
from tests.pull.test_artifacts import attached
from tests.running import running
from tests.transfer.commands import begun, configured, mirror
from tests.transfer.layouts import (
    MARKER,
    blob_path,
    files_of,
    index_of,
    packed,
    saved_by_docker,
)
from tests.waiting import limit

pytestmark = [pytest.mark.slow]


MIB = 1 << 20
APP = image(random_bytes(5 * MIB, 1), random_bytes(300, 2), marker="app")
ARM = image(random_bytes(MIB, 3), marker="arm")
CONTAINERD = "docker.io/library/app:1"
NAMED = {"io_containerd_image_name": CONTAINERD}
WHOLE = files_of(APP, **NAMED)


@pytest.fixture
async def registry():
    async with FakeRegistry() as fake:
        fake.add_image("library/app", APP, "1")
        yield fake


@pytest.fixture
def nowhere():
    """An upstream that nobody is at."""
    return {"docker.io": f"http://127.0.0.1:{free_port()}"}


async def served(cache, upstreams, app=APP, tag="1", repository="library/app", **sections):
    """What a mirror on that cache gives for an image, by tag and by digest."""
    async with running(cache, upstreams, **sections) as mirror:
        return await given(mirror, app, tag, repository)


async def given(mirror, app=APP, tag="1", repository="library/app"):
    statuses = {}
    for reference in (tag, app.digest):
        answer = await mirror.get(f"/v2/{repository}/manifests/{reference}")
        statuses[reference] = answer.status
        assert answer.status != 200 or answer.body == app.manifest
    for blob in app.blobs:
        answer = await mirror.get(f"/v2/{repository}/blobs/{digest_of(blob)}")
        statuses[digest_of(blob)] = answer.status
        assert answer.status != 200 or answer.body == blob
    return set(statuses.values())


class Silent:
    """Is shown how far it has come, and says nothing."""

    def expect(self, total):
        pass

    def advance(self, size):
        pass

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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def settings(cache, upstreams, keep=(), **sections):
    tree = {name: {"url": url} for name, url in upstreams.items()}
    place = {"directory": str(cache), "min_free": "0", **sections}
    return load(None, {"cache": place, "upstreams": tree, "keep": list(keep)})


async def exported(cache, registry, names, target, *platforms):
    config = settings(cache, {"docker.io": registry.url})
    images = [parse_image(name) for name in names]
    wanted = [Platform.parse(name) for name in platforms]
    return await export(config, images, wanted, 4, str(target), Silent(), Silent())


async def imported(tmp_path, data: bytes, upstreams, called=None, keep=(), **cache):
    """Import a file; the reason of each of its images, by name."""
    file = tmp_path / "layout.tar"
    file.write_bytes(data)
    config = settings(tmp_path / "cache", upstreams, keep, **cache)
    name = None if called is None else parse_image(called)
    found = await import_layout(config, str(file), name, Silent())
    return {image.name: image.reason for image in found}


# Carried.


@pytest.mark.long
async def test_what_one_mirror_exports_another_serves_that_reaches_nothing(
    tmp_path, registry, nowhere
):
    here, there = configured(tmp_path / "here", {"docker.io": registry.url}), tmp_path / "there"
    file = tmp_path / "app.tar"
    exported = await mirror("export", "--config", here, "app:1", "-o", file)
    assert exported.code == 0, exported.err
    assert exported.out == ""
    ended = await mirror("import", "--config", configured(there, nowhere), file)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "docker.io/library/app:1: 5.0 MiB\n"
    for _ in range(2):  # the second time after a restart
        assert await served(there / "cache", nowhere) == {200}


@pytest.mark.long
async def test_an_imported_image_has_no_signatures_until_upstream_says_otherwise(
    tmp_path, registry, nowhere
):
    """Docker 29.1 asks for those of each manifest, and fails without an answer."""
    other, old = image(b"other", marker="other"), {"stale_if_error": "1ms", "max_age": "0s"}
    for app in (APP, other):
        registry.add_image("library/all", app)
    listed = index(APP, other)
    registry.add_manifest("library/all", listed, OCI_INDEX, "1")
    here, there = configured(tmp_path / "here", {"docker.io": registry.url}), tmp_path / "there"
    file = tmp_path / "all.tar"
    exported = await mirror("export", "--all-platforms", "--config", here, "all:1", "-o", file)
    assert exported.code == 0, exported.err
    assert (await mirror("import", "--config", configured(there, nowhere), file)).code == 0
    async with running(there / "cache", nowhere, tags=old) as served_there:
        for digest in (digest_of(listed), APP.digest, other.digest):
            tag = digest.replace(":", "-")
            for path in (f"referrers/{digest}?artifactType=x", f"manifests/{tag}"):
                assert (await served_there.get(f"/v2/library/all/{path}")).status == 404
        assert (await served_there.get(f"/v2/library/other/referrers/{APP.digest}")).status == 502
    signature = attached(APP.manifest, "x")
    signed = registry.add_manifest("library/all", signature, OCI_MANIFEST)
    reached = {"docker.io": registry.url}
    async with running(there / "cache", reached, tags=old) as served_there:
        answer = await served_there.get(f"/v2/library/all/referrers/{APP.digest}")
    assert signed in answer.body.decode()


async def test_a_running_mirror_serves_at_once_what_is_imported_beside_it(
    tmp_path, registry, nowhere
):
    async with running(tmp_path / "cache", nowhere) as mirror_beside:
        assert await given(mirror_beside) == {502}
        assert await imported(tmp_path, packed(WHOLE), nowhere) == {CONTAINERD: ""}
        assert await given(mirror_beside) == {200}


async def test_a_running_mirror_forgets_at_once_what_an_imported_tag_meant(
    tmp_path, registry, nowhere
):
    other = image(b"former", marker="former")
    registry.add_image("library/app", other, "1")
    upstreams = {"docker.io": registry.url}
    async with running(tmp_path / "cache", upstreams) as mirror_beside:
        path = "/v2/library/app/manifests/1"
        assert (await mirror_beside.get(path)).body == other.manifest
        await registry.stop()
        assert (await mirror_beside.get(path)).body == other.manifest, "it is fresh"
        await imported(tmp_path, packed(WHOLE), upstreams)
        assert (await mirror_beside.get(path)).body == APP.manifest
    await registry.start()


async def test_an_imported_image_that_is_to_be_kept_is_kept_from_now_on(tmp_path, registry):
    other = registry.add_blob(random_bytes(3 * MIB, 9))
    keep, upstreams = [{"images": ["app:1"]}], {"docker.io": registry.url}
    room = {"max_size": "8MiB"}
    async with running(tmp_path / "cache", upstreams, keep=keep, cache=room) as mirror_beside:
        await imported(tmp_path, packed(WHOLE), upstreams, keep=keep, **room)
        assert (await mirror_beside.get(f"/v2/library/x/blobs/{other}")).status == 200
        await registry.stop()
        assert await given(mirror_beside) == {200}
    await registry.start()


async def test_an_imported_tag_does_not_grow_too_old(tmp_path, nowhere):
    await imported(tmp_path, packed(WHOLE), nowhere)
    tags = {"stale_if_error": "0s", "max_age": "0s"}
    assert await served(tmp_path / "cache", nowhere, tags=tags) == {200}


async def test_an_imported_tag_is_what_a_rule_lets_it_mean(tmp_path, registry, nowhere):
    """The operator has chosen it; upstream may have moved the tag meanwhile."""
    rule = {"images": ["**"], "cooldown": "3d", "unseen": "deny", "digests": "check"}
    await imported(tmp_path, packed(WHOLE), nowhere)
    assert await served(tmp_path / "cache", nowhere, policy=[rule]) == {200}
    (tmp_path / "other").mkdir()
    await imported(tmp_path / "other", packed(WHOLE), nowhere)
    registry.add_image("library/app", image(b"another", marker="other"), "1")
    upstreams = {"docker.io": registry.url}
    assert await served(tmp_path / "other" / "cache", upstreams, policy=[rule]) == {200}


async def test_upstream_once_it_is_reached_has_the_last_word(tmp_path, registry, nowhere):
    await imported(tmp_path, packed(WHOLE), nowhere)
    other = image(b"another", marker="other")
    registry.add_image("library/app", other, "1")
    upstreams = {"docker.io": registry.url}
    assert await served(tmp_path / "cache", upstreams, other) == {200}
    await registry.stop()
    assert await served(tmp_path / "cache", upstreams, other) == {200}
    await registry.start()


async def test_a_client_that_accepts_less_is_given_an_imported_tag_too(tmp_path, nowhere):
    await imported(tmp_path, packed(WHOLE), nowhere)
    async with running(tmp_path / "cache", nowhere) as mirror_of_it:
        path = "/v2/library/app/manifests/1"
        assert (await mirror_of_it.get(path, Accept=APP.media_type)).body == APP.manifest
        assert (await mirror_of_it.get(path, Accept=OCI_INDEX)).status == 502


async def test_of_an_index_what_was_chosen_is_carried(tmp_path, registry, nowhere):
    document = json.loads(index(APP, ARM))
    for entry, architecture in zip(document["manifests"], ("amd64", "arm64"), strict=True):
        entry["platform"] = {"os": "linux", "architecture": architecture}
    body = json.dumps(document).encode()
    registry.add_image("library/multi", APP)
    registry.add_image("library/multi", ARM)
    registry.add_manifest("library/multi", body, OCI_INDEX, "1")
    file, there = tmp_path / "arm.tar", tmp_path / "there"
    await exported(tmp_path / "here", registry, ["multi:1"], file, "linux/arm64")
    assert set(registry.sent) == set(ARM.digests)
    (found,) = await import_layout(settings(there / "cache", nowhere), str(file), None, Silent())
    assert found.reason == ""
    async with running(there / "cache", nowhere) as mirror_there:
        answer = await mirror_there.get("/v2/library/multi/manifests/1")
        assert (answer.status, answer.body) == (200, body)
        assert await given(mirror_there, ARM, ARM.digest, "library/multi") == {200}
        assert await given(mirror_there, APP, APP.digest, "library/multi") == {502}


async def test_a_directory_is_a_layout_that_more_is_added_to(tmp_path, registry, nowhere):
    registry.add_image("org/arm", ARM, "2")
    layout, there = tmp_path / "layout", tmp_path / "there"
    for names in (["app:1"], ["org/arm:2"], ["org/arm:2", "app:1"]):
        await exported(tmp_path / "here", registry, names, f"{layout}/")
    assert json.loads((layout / "oci-layout").read_bytes()) == json.loads(MARKER)
    assert len(json.loads((layout / "index.json").read_bytes())["manifests"]) == 2
    assert [path for path in layout.rglob("*") if "partial" in path.name] == []
    found = await import_layout(settings(there, nowhere), str(layout), None, Silent())
    assert {image.name: image.reason for image in found} == {
        "docker.io/library/app:1": "",
        "docker.io/org/arm:2": "",
    }
    assert await served(there, nowhere, ARM, "2", "org/arm") == {200}


async def test_a_file_that_was_altered_in_a_directory_is_written_anew(tmp_path, registry):
    layout = tmp_path / "layout"
    await exported(tmp_path / "here", registry, ["app:1"], f"{layout}/")
    blob = layout / blob_path(APP.blobs[1])
    blob.write_bytes(bytes(len(APP.blobs[1])))
    await exported(tmp_path / "here", registry, ["app:1"], layout)
    assert blob.read_bytes() == APP.blobs[1]


async def test_the_same_images_make_the_same_file(tmp_path, registry):
    for name in ("a.tar", "b.tar"):
        await exported(tmp_path / "here", registry, ["app:1"], tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames()[:3] == ["oci-layout", "index.json", "manifest.json"]
    assert sum(registry.sent.values()) == sum(map(len, APP.blobs))


@pytest.mark.long
async def test_an_export_that_cannot_be_whole_leaves_nothing(tmp_path, registry):
    here = configured(tmp_path / "here", {"docker.io": registry.url})
    ended = await mirror("export", "--config", here, "app:1", "app:2", "-o", tmp_path / "f.tar")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-2:] == [
        "mirror: app:2: docker.io: has no such thing in library/app",
        "mirror: nothing was written",
    ]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    for target, said in (
        (tmp_path / "no" / "f.tar", "cannot be written: No such file or directory"),
        (tmp_path / "full", "not empty, and not an OCI image layout"),
    ):
        with pytest.raises(UserError, match=said):
            await exported(tmp_path / "here" / "cache", registry, ["app:1"], target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "here"]


# As other programs write it.


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
async def test_a_layout_is_read_however_it_is_compressed(tmp_path, nowhere, mode):
    plain = image(bytes(5 * MIB), marker="plain")
    data = packed(files_of(plain, **NAMED), mode)
    assert await imported(tmp_path, data, nowhere) == {CONTAINERD: ""}
    assert await served(tmp_path / "cache", nowhere, plain) == {200}


@pytest.mark.long
async def test_what_docker_saves_is_read_from_a_pipe(tmp_path, nowhere):
    config = configured(tmp_path, nowhere)
    data = saved_by_docker(APP, "docker.io/library/app:1")
    ended = await mirror("import", "--config", config, "-", stdin=data)
    assert (ended.code, ended.out) == (0, "docker.io/library/app:1: 5.0 MiB\n")
    assert await served(tmp_path / "cache", nowhere) == {200}


@pytest.mark.long
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
async def test_a_pipe_that_begins_with_one_byte_is_read_as_any_other(tmp_path, nowhere, mode):
    config = configured(tmp_path, nowhere)
    data = packed(files_of(APP, **NAMED), mode)
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as pipe, open(reading, "rb") as stdin:
        process = await begun("import", "--config", str(config), "-", stdin=stdin, stderr=PIPE)
        pipe.write(data[:1])
        async with limit():
            while unread(stdin.fileno()):  # the command takes it
                await asyncio.sleep(0.01)
        stdin.close()
        pipes = asyncio.create_task(asyncio.to_thread(written, pipe, data[1:]))
        async with limit():
            _, err = await process.communicate()
        await pipes
    assert (process.returncode, err) == (0, b"")
    assert await served(tmp_path / "cache", nowhere) == {200}


def written(pipe: BinaryIO, data: bytes) -> None:
    """Write it all and say that this was all."""
    with contextlib.suppress(BrokenPipeError), pipe:
        while data:
            data = data[pipe.write(data) :]


def unread(fd: int) -> int:
    """How many bytes are in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


async def test_an_image_without_a_name_is_given_one(tmp_path, nowhere):
    data = packed(files_of(APP, org_opencontainers_image_ref_name="latest"))
    reasons = await imported(tmp_path, data, nowhere)
    assert reasons == {APP.digest: "has no name; set one with --as"}
    assert await served(tmp_path / "cache", nowhere, tag=APP.digest) == {200}
    assert await imported(tmp_path, data, nowhere, "app:1") == {CONTAINERD: ""}
    assert await served(tmp_path / "cache", nowhere) == {200}


async def test_a_registry_that_is_not_configured_is_told(tmp_path, nowhere):
    name = "r.example.com/app:1"
    data = packed(files_of(APP, io_containerd_image_name=name))
    assert '[upstreams."r.example.com"]' in (await imported(tmp_path, data, nowhere))[name]
    upstreams = {**nowhere, "r.example.com": "http://127.0.0.1:9"}
    assert await imported(tmp_path, data, upstreams) == {name: ""}
    found = await served(tmp_path / "cache", upstreams, repository="r.example.com/app")
    assert found == {200}


async def test_a_blob_that_reads_like_a_manifest_is_a_blob_all_the_same(tmp_path, nowhere):
    strange = image(ARM.manifest, marker="strange")
    data = packed(files_of(strange, **NAMED))
    assert await imported(tmp_path, data, nowhere) == {CONTAINERD: ""}
    assert await served(tmp_path / "cache", nowhere, strange) == {200}


# What is no layout, or not a whole one.

FLIPPED = {**WHOLE, blob_path(APP.blobs[1]): APP.blobs[1][:-1] + b"x"}
SWAPPED = {**WHOLE, blob_path(APP.manifest): APP.manifest + b" "}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (packed(FLIPPED), f"the content of {APP.digests[1]} does not match its digest"),
        (packed(SWAPPED), f"the content of {APP.digest} does not match its digest"),
        (packed(WHOLE)[: 2 * MIB], f"truncated in the middle of {blob_path(APP.blobs[1])}"),
        (packed(WHOLE).rstrip(b"\0"), "truncated"),
        (packed(WHOLE, "w:gz")[: 2 * MIB], "the compressed data is damaged"),
        (b"", "not a tar"),
        (random_bytes(4000), "not a tar"),
        (packed({}), "not an OCI image layout; docker save writes one from Docker 25 on"),
        (packed({"a/layer.tar": b"x", "manifest.json": b"[]"}), "not an OCI image layout"),
        (packed({"oci-layout": MARKER}), "has no index.json"),
        (packed({"oci-layout": MARKER, "index.json": index_of([])}), "contains no image"),
        (packed({**WHOLE, "index.json": b"{"}), "index.json: not JSON"),
        (packed({**WHOLE, "oci-layout": b'{"imageLayoutVersion": "9.0"}'}), "version '9.0'"),
        (packed({**WHOLE, "../../etc/cron.d/x": b"x"}), "which leads out of it"),
        (packed({**WHOLE, "/etc/cron.d/x": b"x"}), "which leads out of it"),
        (b"\x28\xb5\x2f\xfd" + random_bytes(600), "zstd -dc FILE | mirror import -"),
    ],
)
async def test_what_is_damaged_is_told_and_nothing_of_it_has_a_name(tmp_path, nowhere, data, said):
    with pytest.raises(UserError) as failed:
        await imported(tmp_path, data, nowhere)
    (line,) = str(failed.value).splitlines()
    assert line.startswith(f"{tmp_path}/layout.tar: ")
    assert said in line
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    assert 502 in await served(tmp_path / "cache", nowhere), "its name leads nowhere"


@pytest.mark.long
async def test_a_damaged_file_is_one_line_and_1(tmp_path, nowhere):
    file = tmp_path / "layout.tar"
    file.write_bytes(packed(WHOLE)[: 2 * MIB])
    ended = await mirror("import", "--config", configured(tmp_path, nowhere), file)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"mirror: {file}: truncated in the middle of blobs/sha256/")
    assert len(ended.err.splitlines()) == 1


async def test_what_is_missing_is_told_and_the_name_leads_nowhere(tmp_path, nowhere):
    data = packed({k: v for k, v in WHOLE.items() if k != blob_path(APP.blobs[1])})
    reasons = await imported(tmp_path, data, nowhere)
    assert reasons[CONTAINERD].startswith(f"lacks {APP.digests[1]}; ")
    async with running(tmp_path / "cache", nowhere) as mirror_of_it:
        assert (await mirror_of_it.get("/v2/library/app/manifests/1")).status == 502


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
async def test_a_link_among_the_blobs_is_refused(tmp_path, nowhere, kind):
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(blob_path(b"x"))
        member.type, member.linkname = kind, "/etc/shadow"
        archive.addfile(member)
    with pytest.raises(UserError, match="is not a regular file"):
        await imported(tmp_path, buffer.getvalue(), nowhere)


async def test_a_link_in_a_directory_is_not_followed(tmp_path, nowhere):
    layout = tmp_path / "layout"
    for name, data in WHOLE.items():
        (layout / name).parent.mkdir(parents=True, exist_ok=True)
        (layout / name).write_bytes(data)
    blob = layout / blob_path(APP.blobs[2])
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"layout: cannot be read: .*symbolic links"):
        await import_layout(settings(tmp_path / "c", nowhere), str(layout), None, Silent())


async def test_what_does_not_fit_is_told(tmp_path, nowhere):
    with pytest.raises(UserError, match=f"cannot store it: no room for {APP.digests[1]}"):
        await imported(tmp_path, packed(WHOLE), nowhere, max_size="4MiB")


@pytest.mark.long
async def test_a_large_layout_takes_little_memory(tmp_path, nowhere):
    large = image(random_bytes(96 * MIB, 7), marker="large")
    file = tmp_path / "large.tar"
    file.write_bytes(packed(files_of(large, **NAMED)))
    tracemalloc.start()
    (found,) = await import_layout(settings(tmp_path / "c", nowhere), str(file), None, Silent())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.reason == ""
    assert peak < 12 * MIB
