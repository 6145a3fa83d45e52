"""What is blocked leaves the mirror on no way."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from mirror.admin.commands import blocked, blocks, unblocked
from mirror.config import Config
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_INDEX, digest_of, index
from tests.fakes.office import EVERYBODY, Office, basic
from tests.fakes.signing import Signer
from tests.peers.mirror import MirrorProcess
from tests.running import Mirror, configured, eventually, running
from tests.waiting import LIMIT_SECONDS, limit, until

pytestmark = pytest.mark.slow

HUB = "docker.io"
REPO = "library/app"
MIB = 1 << 20
APP = image(b"layer of the application", marker="app")
OTHER = image(b"layer of another one", marker="other")
ARM = image(b"layer for arm", marker="arm")
MULTI = index(APP, ARM)
DECISIONS = f'mirror_policy_decisions_total{{decision="blocked",upstream="{HUB}"}}'


def manifest(reference: str, repo: str = REPO) -> str:
    return f"/v2/{repo}/manifests/{reference}"


def blob(digest: str, repo: str = REPO) -> str:
    return f"/v2/{repo}/blobs/{digest}"


@pytest.fixture
def office(tmp_path, upstream: FakeRegistry) -> Config:
    """The configuration of a mirror whose upstream has an index, and another image."""
    for each in (APP, ARM):
        upstream.add_image(REPO, each)
    upstream.add_manifest(REPO, MULTI, OCI_INDEX, "1")
    upstream.add_image("library/other", OTHER, "1")
    return configured(tmp_path / "cache", {HUB: upstream.url, "ghcr.io": upstream.url})


@pytest.fixture
async def mirror(tmp_path, upstream, office):
    upstreams = {HUB: upstream.url, "ghcr.io": upstream.url}
    async with running(tmp_path / "cache", upstreams) as mirror:
        yield mirror


async def statuses(mirror: Mirror, *paths: str, method: str = "GET", **headers: str) -> list[int]:
    return [(await mirror.get(path, method, **headers)).status for path in paths]


PARTS = [
    *(manifest(each) for each in ("1", digest_of(MULTI), APP.digest, ARM.digest)),
    blob(APP.digests[0]),
]


@pytest.mark.parametrize("target", ["app:1", "docker.io/library/app:1", digest_of(MULTI)])
async def test_a_blocked_image_is_refused_by_all_its_names_until_it_is_unblocked(
    mirror, office, target
):
    assert set(await statuses(mirror, *PARTS, *PARTS)) == {200}  # the second time from memory
    said = await blocked(office, [target], "CVE-2026-1")
    assert said["blocks"][0]["reason"] == "CVE-2026-1"
    for method in ("GET", "HEAD"):
        assert set(await statuses(mirror, *PARTS, method=method)) == {403}
    elsewhere = [path.replace("/v2/", "/v2/ghcr.io/") for path in PARTS[1:]]
    assert set(await statuses(mirror, *elsewhere)) == {403}
    assert await statuses(mirror, f"{PARTS[1]}?ns=ghcr.io") == [403]
    assert await statuses(mirror, manifest("1", "library/other")) == [200]
    layer = blob(APP.digests[1])
    for method in ("GET", "HEAD"):
        assert await statuses(mirror, layer, method=method) == [200], "other images may share it"
    await unblocked(office, [target])
    assert set(await statuses(mirror, *PARTS)) == {200}
    await eventually(mirror, DECISIONS, 10)


async def test_a_refusal_says_who_refuses_why_and_what_to_do(mirror, office, caplog):
    await mirror.get(manifest("1"))
    await blocked(office, ["app:1"], "CVE-2026-1")
    answer = await mirror.get(manifest("1"))
    (error,) = json.loads(answer.body)["errors"]
    assert error["code"] == "DENIED"
    assert error["message"].startswith(
        "docker.io/library/app:1 is blocked by the operator of this mirror since "
    )
    assert error["message"].endswith(
        ": CVE-2026-1; pull another version, or ask the operator for: "
        "mirror unblock docker.io/library/app:1"
    )
    (line,) = [each for each in caplog.records if each.getMessage() == "policy"]
    assert (line.decision, line.upstream) == ("blocked", HUB)
    assert (line.repository, line.reference) == (REPO, "1")


async def test_a_blocked_tag_is_still_listed(mirror, office):
    await blocked(office, ["app:1"], "")
    assert json.loads((await mirror.get("/v2/library/app/tags/list")).body)["tags"] == ["1"]
    assert [each["target"] for each in (await blocks(office))["blocks"]] == [
        "docker.io/library/app:1"
    ]


@pytest.mark.parametrize("target", ["library/*:*", "docker.io/**", "*/library/app:*"])
async def test_a_glob_of_all_tags_blocks_repositories_by_digest_too(mirror, office, target):
    await blocked(office, [target], "")
    assert set(await statuses(mirror, *PARTS, blob(APP.digests[1]))) == {403}


async def test_a_tag_stays_blocked_when_it_moves(mirror, office, upstream):
    await mirror.get(manifest("1"))
    await blocked(office, ["app:1"], "")
    upstream.add_image(REPO, OTHER, "1", "2")
    assert await statuses(mirror, manifest("1"), manifest("2")) == [403, 200]


async def test_an_image_can_be_blocked_before_it_is_cached(mirror, office):
    await blocked(office, [APP.digest, f"library/other@{OTHER.digest}"], "")
    assert await statuses(mirror, manifest(APP.digest), manifest("1", "library/other")) == [403] * 2


async def test_blocks_survive_a_restart_and_need_no_running_mirror(tmp_path, upstream, office):
    upstreams = {HUB: upstream.url}
    async with running(tmp_path / "cache", upstreams) as mirror:
        await mirror.get(manifest("1"))
        await mirror.get(manifest(APP.digest))
        await blocked(office, ["app:1"], "while it runs")
    await blocked(office, ["other:1"], "while it does not")
    assert len((await blocks(office))["blocks"]) == 2
    async with running(tmp_path / "cache", upstreams) as mirror:
        assert set(await statuses(mirror, *PARTS, manifest("1", "library/other"))) == {403}
    await unblocked(office, ["other:1"])
    async with running(tmp_path / "cache", upstreams) as mirror:
        assert await statuses(mirror, manifest("1"), manifest("1", "library/other")) == [403, 200]


async def test_a_block_takes_effect_without_the_control_socket(tmp_path, mirror, office):
    """As if another container wrote to the same directory."""
    assert await statuses(mirror, manifest(APP.digest), manifest(APP.digest)) == [200, 200]
    block = {"target": APP.digest, "reason": "", "since": 1.0, "by": "ann"}
    document = {"blocks": [{**block, "digests": [], "layers": []}]}
    (tmp_path / "cache" / "blocks.json").write_text(json.dumps(document))
    async with limit():
        while await statuses(mirror, manifest(APP.digest)) == [200]:
            await asyncio.sleep(0.02)


async def test_a_list_that_is_damaged_keeps_the_last_blocks_and_a_new_mirror_down(
    tmp_path, upstream, office, caplog
):
    file = tmp_path / "cache" / "blocks.json"
    async with running(tmp_path / "cache", {HUB: upstream.url}) as mirror:
        await blocked(office, [APP.digest], "")
        good = file.read_text()
        file.write_text(good[:-10])
        await until(lambda: "is damaged" in caplog.text)
        assert await statuses(mirror, manifest(APP.digest)) == [403]
        with pytest.raises(UserError, match="is damaged"):
            await blocked(office, [OTHER.digest], "")
    file.write_text(good[:-10])
    with pytest.raises(UserError, match=r"blocked images: .* is damaged"):
        async with running(tmp_path / "cache", {HUB: upstream.url}):
            raise AssertionError("it must not serve")


async def test_a_list_that_is_removed_keeps_the_blocks_in_force(tmp_path, mirror, office, caplog):
    await blocked(office, [APP.digest], "")
    (tmp_path / "cache" / "blocks.json").unlink()
    await until(lambda: "is gone" in caplog.text)
    assert await statuses(mirror, manifest(APP.digest)) == [403]


@pytest.mark.parametrize("target", ["Upper/Case", "app:1:2", "sha256:xyz"])
async def test_what_cannot_be_blocked_is_one_line(mirror, office, target):
    with pytest.raises(UserError, match="allowed: a digest, or"):
        await blocked(office, [target], "")
    with pytest.raises(UserError, match="is not blocked by a command"):
        await unblocked(office, ["app:7"])


async def test_the_configuration_blocks_too_and_a_reload_changes_it(tmp_path, upstream, office):
    upstreams = {HUB: upstream.url}
    rule = {"image": "library/app:*", "reason": "not\nhere\n"}
    async with running(tmp_path / "cache", upstreams, block=[rule]) as mirror:
        assert set(await statuses(mirror, *PARTS)) == {403}
        assert b"not here" in (await mirror.get(manifest("1"))).body
        (told,) = (await blocks(office))["blocks"]
        assert (told["target"], told["since"]) == ("docker.io/library/app:*", None)
        await mirror.reload(configured(tmp_path / "cache", upstreams))
        assert set(await statuses(mirror, *PARTS, *PARTS)) == {200}
        other = {"image": APP.digest}
        await mirror.reload(configured(tmp_path / "cache", upstreams, block=[other]))
        assert await statuses(mirror, manifest("1"), manifest(APP.digest)) == [200, 403]


def test_a_block_of_no_upstream_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"block\.0\.image: found 'example\.org/x'"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, block=[{"image": "example.org/x"}])
    with pytest.raises(UserError, match=r"block\.0\.image: found 'A', allowed: a digest, or"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, block=[{"image": "A"}])


async def test_clients_with_their_own_credentials_are_refused_too(tmp_path, upstream):
    ann = basic("ann", "secret")
    office = Office(upstream, bearer=False)
    office.add("team/app", APP, ann)
    office.add("library/open", OTHER, EVERYBODY)
    table = {"url": upstream.url, "client_credentials": True}
    config = configured(tmp_path, {HUB: table})
    async with running(tmp_path, {HUB: table}) as mirror:
        paths = [manifest(APP.digest, "team/app"), blob(APP.digests[0], "team/app")]
        assert await statuses(mirror, *paths, Authorization=ann) == [200, 200]
        await blocked(config, [APP.digest], "")
        for method in ("GET", "HEAD"):
            assert set(await statuses(mirror, *paths, method=method, Authorization=ann)) == {403}


async def read(session: aiohttp.ClientSession, url: str, began: asyncio.Queue[None]) -> int:
    """Return how many bytes of a body arrive; say once that some have."""
    count = 0
    try:
        async with session.get(url) as response:
            assert response.status == 200
            async for piece in response.content.iter_any():
                if not count:
                    began.put_nowait(None)
                count += len(piece)
    except aiohttp.ClientError:
        pass
    return count


@pytest.mark.parametrize("by", ["layer", "image"])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_transfer_in_progress_is_broken_off(mirror, upstream, office, by, stored):
    large = image(random_bytes(16 * MIB), marker="large")
    (layer,) = large.digests[1:]
    upstream.add_image("library/large", large, "1")
    await mirror.get(manifest("1", "library/large"))
    if stored:
        assert len((await mirror.get(blob(layer))).body) == 16 * MIB
    else:
        upstream.hold(4 * MIB)
    began: asyncio.Queue[None] = asyncio.Queue()
    # The first client does not read: the bytes of a stored blob wait in the mirror.
    async with (
        limit(),
        aiohttp.ClientSession(read_bufsize=4096) as session,
        session.get(mirror.url + blob(layer)) as slow,
    ):
        url = mirror.url + blob(layer)
        crowd = [asyncio.create_task(read(session, url, began)) for _ in range(0 if stored else 16)]
        for _ in crowd:
            await began.get()
        await blocked(office, [layer if by == "layer" else "library/large:1"], "")
        upstream.release()
        assert all(count < 16 * MIB for count in await asyncio.gather(*crowd))
        with pytest.raises(aiohttp.ClientError):
            await slow.read()
    expected = 403 if by == "layer" else 200
    assert await statuses(mirror, blob(layer)) == [expected]
    assert await statuses(mirror, manifest("1", "library/large")) == [200 if by == "layer" else 403]


def run(*arguments: str, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mirror", *arguments, "--config", str(config)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )


@pytest.mark.long
@pytest.mark.slow
async def test_a_command_blocks_in_all_workers_and_exports_nothing(tmp_path, upstream, office):
    mirror = MirrorProcess(tmp_path, {HUB: upstream.url}, workers=2)
    await asyncio.to_thread(mirror.start)
    try:
        config = tmp_path / "mirror.toml"

        async def asked(path: str) -> set[int]:
            """The statuses of many connections, which the system spreads over the workers."""
            found = set()
            for _ in range(24):
                async with aiohttp.ClientSession() as session:
                    for _ in range(2):
                        async with session.get(mirror.url + path) as response:
                            found.add(response.status)
            return found

        paths = [*PARTS, manifest("1", "library/other")]
        for path in paths:
            assert await asked(path) == {200}
        done = await asyncio.to_thread(run, "block", "app:1", "--reason", "evil", config=config)
        assert (done.returncode, done.stdout) == (
            0, "blocked docker.io/library/app:1 (5 digests)\n",
        )  # fmt: skip
        for path in PARTS:
            assert await asked(path) == {403}
        assert await asked(paths[-1]) == {200}
        listing = await asyncio.to_thread(run, "blocks", config=config)
        assert listing.stdout.splitlines()[1].split()[0] == "docker.io/library/app:1"
        assert listing.stdout.splitlines()[1].endswith("  evil")
        for command in (["export", "app:1", "-o", str(tmp_path / "out")], ["warm", "app:1"]):
            refused = await asyncio.to_thread(run, *command, config=config)
            assert refused.returncode == 1
            assert "is blocked by the operator" in refused.stdout + refused.stderr
        said = await asyncio.to_thread(run, "policy", "app:1", config=config)
        shown = said.stdout.splitlines()
        assert shown[:3] == [
            "image     docker.io/library/app:1",
            f"upstream  {digest_of(MULTI)}",
            "served    refused",
        ]
        assert shown[3].startswith("docker.io/library/app:1 is blocked by the operator")
        passed = await asyncio.to_thread(run, "release", "app:1", config=config)
        assert passed.stdout == f"released docker.io/library/app:1: {digest_of(MULTI)}\n"
        as_json = await asyncio.to_thread(run, "blocks", "--json", config=config)
        assert json.loads(as_json.stdout)["blocks"][0]["reason"] == "evil"
        again = await asyncio.to_thread(run, "unblock", "app:1", config=config)
        assert again.stdout == "unblocked docker.io/library/app:1\n"
        for path in PARTS:
            assert await asked(path) == {200}
        empty = await asyncio.to_thread(run, "blocks", config=config)
        assert empty.stdout == "nothing is blocked\n"
    finally:
        await asyncio.to_thread(mirror.terminate)


async def test_a_pinned_tag_means_its_digest_whatever_upstream_says(tmp_path, upstream, caplog):
    old, new = image(b"old", marker="old"), image(b"new", marker="new")
    upstream.add_image(REPO, old)
    upstream.add_image(REPO, new, "1", "2")
    pin = {"image": "app:1", "digest": old.digest, "note": "until #123 is fixed"}
    caplog.set_level("INFO")
    async with running(tmp_path, {HUB: upstream.url}, pin=[pin], tags={"max_age": "0s"}) as mirror:
        for method in ("HEAD", "GET", "GET"):
            answer = await mirror.get(manifest("1"), method)
            assert answer.headers["Docker-Content-Digest"] == old.digest
        assert (await mirror.get(manifest("2"))).headers["Docker-Content-Digest"] == new.digest
        (line, *_) = [each for each in caplog.records if each.getMessage() == "policy"]
        assert (line.decision, line.served, line.levelname) == ("pinned", old.digest, "INFO")
        assert "until #123 is fixed" in line.reason
        del upstream.tags[REPO, "1"], upstream.manifests[REPO, old.digest]
        assert (await mirror.get(manifest("1"))).body == old.manifest
        decisions = f'mirror_policy_decisions_total{{decision="pinned",upstream="{HUB}"}}'
        await eventually(mirror, decisions, 2)  # the others were repeated from memory
        other = {"image": "app:1", "digest": f"sha256:{'0' * 64}"}
        config = configured(tmp_path, {HUB: upstream.url}, pin=[other])
        await mirror.reload(config)
        answer = await mirror.get(manifest("1"))
        assert answer.status == 404
        assert b"docker.io/library/app:1 is pinned to sha256:000" in answer.body
        await blocked(config, [other["digest"]], "")
        assert await statuses(mirror, manifest("1")) == [404]
        await mirror.reload(configured(tmp_path, {HUB: upstream.url}, pin=[pin]))
        await blocked(config, [old.digest], "")
        assert await statuses(mirror, manifest("1")) == [403]


async def test_a_pin_wins_over_a_rule_for_pulls_by_digest_too(tmp_path, upstream):
    for each in (APP, ARM, OTHER):
        upstream.add_image(REPO, each)
    both = upstream.add_manifest(REPO, MULTI, OCI_INDEX)
    (tmp_path / "ann.pub").write_bytes(Signer().pem)
    rule = {"images": ["app:*"], "digests": "check", "signed_by": [str(tmp_path / "ann.pub")]}
    rule |= {"cooldown": "3d", "unseen": "deny"}
    pin = {"image": "app:1", "digest": both}
    async with running(tmp_path, {HUB: upstream.url}, pin=[pin], policy=[rule]) as mirror:
        for reference in ("1", both, APP.digest, ARM.digest):
            assert await statuses(mirror, manifest(reference)) == [200]
        assert await statuses(mirror, manifest(OTHER.digest)) == [403]


async def test_a_refusal_names_a_digest_once(mirror, office):
    await blocked(office, [APP.digest], "")
    answer = await mirror.get(manifest(APP.digest))
    said = json.loads(answer.body)["errors"][0]["message"]
    assert said.startswith(f"docker.io/library/app@{APP.digest} is blocked by the operator of this")


async def test_what_is_pinned_is_never_evicted(tmp_path, upstream):
    old = image(random_bytes(300_000, 1), marker="old")
    upstream.add_image(REPO, old)
    pin = {"image": "app:1", "digest": old.digest}
    cache = {"max_size": "2MiB"}
    async with running(tmp_path, {HUB: upstream.url}, pin=[pin], cache=cache) as mirror:
        paths = [manifest("1"), *(blob(digest) for digest in old.digests)]
        assert set(await statuses(mirror, *paths)) == {200}
        for seed in range(8):
            assert await statuses(mirror, blob(upstream.add_blob(random_bytes(300_000, seed)))) == [
                200
            ]
        await eventually(mirror, "mirror_fills_in_progress", 0)
        assert (await mirror.metrics())["mirror_evictions_total"] > 0
        upstream.manifests.clear()
        upstream.blobs.clear()
        assert set(await statuses(mirror, *paths)) == {200}


@pytest.mark.parametrize("wrong", ["app:*", "app@sha256:x", f"app@sha256:{'0' * 64}"])
def test_a_pin_is_of_one_tag(tmp_path, wrong):
    pin = {"image": wrong, "digest": f"sha256:{'0' * 64}"}
    with pytest.raises(UserError, match=r"pin\.0\.image: .*allowed: an image with a tag"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, pin=[pin])
    with pytest.raises(UserError, match=r"pin\.0\.digest: .*allowed: a digest begins with"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, pin=[{"image": "a:1", "digest": "x"}])
