"""A tag follows its upstream only after a while."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from mirror.admin.commands import blocked, explained, released, removed
from mirror.cli.root import app
from mirror.policy.rules import Moment
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.clock import Clock
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, Image, digest_of, index
from tests.fakes.office import Office, basic
from tests.running import Mirror, configured, eventually, running
from tests.waiting import limit

pytestmark = pytest.mark.slow

HUB = "docker.io"
REPO = "library/app"
DAY = 86_400.0
NAMES = ("a", "b", "c")
A, B, C = (image(f"layer {name}".encode(), marker=name) for name in NAMES)
RULE = {"images": ["docker.io/**"], "cooldown": "3d", "unseen": "allow"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, upstream: FakeRegistry, clock: Clock):
    """Opens a mirror with rules; tags are asked for each time."""
    upstream.add_image(REPO, A, "1")

    @asynccontextmanager
    async def site(*rules: dict[str, Any], **sections: Any):
        upstreams = {HUB: upstream.url}
        tags = {"max_age": "0s"}
        policy = list(rules) or [RULE]
        async with running(
            tmp_path, upstreams, clock=clock, policy=policy, tags=tags, **sections
        ) as mirror:
            yield mirror

    return site


def config(tmp_path, upstream, *rules: dict[str, Any]):
    return configured(tmp_path, {HUB: upstream.url}, policy=list(rules) or [RULE])


async def meaning(mirror: Mirror, reference: str = "1", repo: str = REPO, **headers: str) -> str:
    """The digest that a tag means, or the message of a refusal; the same by GET and HEAD."""
    path = f"/v2/{repo}/manifests/{reference}"
    head = await mirror.get(path, "HEAD", **headers)
    answer = await mirror.get(path, **headers)
    assert answer.status == head.status
    if answer.status != 200:
        assert json.loads(answer.body)["errors"][0]["code"] == "DENIED"
        return str(json.loads(answer.body)["errors"][0]["message"])
    digest = answer.headers["Docker-Content-Digest"]
    assert head.headers["Docker-Content-Digest"] == digest == digest_of(answer.body)
    return str(digest)


async def test_a_tag_that_moved_is_held_and_follows_by_itself(site, upstream, clock, caplog):
    caplog.set_level("INFO")
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        for _ in range(2):
            assert await meaning(mirror) == A.digest
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
        assert answer.headers["Cache-Status"].endswith("; detail=held")
        assert await meaning(mirror, B.digest) == B.digest, "the client has chosen"
        assert json.loads((await mirror.get(f"/v2/{REPO}/tags/list")).body)["tags"] == ["1"]
        clock.pass_by(3 * DAY - 1)
        assert await meaning(mirror) == A.digest
        clock.pass_by(1)
        assert await meaning(mirror) == B.digest
        decisions = "mirror_policy_decisions_total"
        await eventually(mirror, f'{decisions}{{decision="held",upstream="{HUB}"}}', 7)
        await eventually(mirror, f'{decisions}{{decision="allowed",upstream="{HUB}"}}', 4)
    (line, *_) = [each for each in caplog.records if each.getMessage() == "policy"]
    assert (line.decision, line.served, line.levelname) == ("held", A.digest, "INFO")
    assert line.reason == (
        f"docker.io/library/app:1 moved to {B.digest}, first seen 0 s ago; the rule 'docker.io/**' "
        f"waits 3 d, until 2027-01-18 08:00 UTC; 1 is served as {A.digest}; "
        f"ask the operator for: mirror release docker.io/library/app@{B.digest}"
    )


async def test_the_clock_is_that_of_the_newest_digest(site, upstream, clock):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        clock.pass_by(2 * DAY)
        upstream.add_image(REPO, C, "1")
        assert await meaning(mirror) == A.digest
        clock.pass_by(2 * DAY)
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == B.digest, "known for four days"
        clock.pass_by(1 * DAY)
        upstream.add_image(REPO, C, "1")
        assert await meaning(mirror) == C.digest


async def test_a_tag_that_moves_back_follows_at_once(site, upstream, clock):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        await meaning(mirror)
        upstream.add_image(REPO, A, "1")
        assert await meaning(mirror) == A.digest
        clock.pass_by(4 * DAY)
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == B.digest
        upstream.add_image(REPO, A, "1")
        assert await meaning(mirror) == A.digest


async def test_it_is_remembered_over_a_restart_with_upstream_gone(site, upstream, clock):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
    upstream.add_image(REPO, B, "1")
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
    await upstream.stop()
    clock.pass_by(2 * DAY)
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
    clock.pass_by(2 * DAY)
    async with site() as mirror:
        assert await meaning(mirror) == B.digest
    await upstream.start()


async def test_workers_share_what_they_know(site, upstream, clock):
    async with site() as one, site() as other:
        assert await meaning(one) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(other) == A.digest
        clock.pass_by(3 * DAY)
        assert await meaning(one) == B.digest
        upstream.add_image(REPO, A, "1")
        assert await meaning(other) == A.digest


@pytest.mark.parametrize("step", [-365 * DAY, 365 * DAY])
async def test_setting_the_clock_neither_shortens_nor_prolongs_it(site, upstream, clock, step):
    async with site() as mirror:
        await meaning(mirror)
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        clock.now = replace(clock.now, wall=clock.now.wall + step)
        assert await meaning(mirror) == A.digest
        clock.pass_by(3 * DAY)
        assert await meaning(mirror) == B.digest


async def test_a_clock_that_was_set_back_before_a_restart_prolongs_it(site, upstream, clock):
    async with site() as mirror:
        await meaning(mirror)
        upstream.add_image(REPO, B, "1")
        await meaning(mirror)
        clock.now = Moment(clock.now.wall - DAY, "second", 0.0)
        clock.pass_by(3 * DAY)
        assert await meaning(mirror) == A.digest
        clock.pass_by(1 * DAY)
        assert await meaning(mirror) == B.digest


def dated(created: object) -> Image:
    """An image of an invented date."""
    plain = image(b"dated")
    document = {**json.loads(plain.blobs[0]), "created": created}
    blob = json.dumps(document).encode()
    body = json.loads(plain.manifest)
    body["config"] |= {"digest": digest_of(blob), "size": len(blob)}
    return Image(json.dumps(body).encode(), plain.media_type, (blob, *plain.blobs[1:]))


NOW = "2027-01-15T08:00:00Z"  # the clock's


@pytest.mark.parametrize("in_index", [False, True])
@pytest.mark.parametrize(
    ("created", "days"),
    [
        ("2027-01-01T00:00:00.123456789Z", 0),
        ("2027-01-13T08:00:00Z", 1),
        (NOW, 3),
        ("2031-01-01T00:00:00Z", 3),
        ("yesterday", 3),
        ("0001-01-01T00:00:00Z", 3),
        (None, 3),
        (17, 3),
    ],
)
async def test_an_image_never_seen_before_is_as_old_as_it_says(
    site, upstream, clock, created, days, in_index
):
    content = dated(created)
    upstream.add_image(REPO, content, "2")
    digest = content.digest
    if in_index:
        attestation = json.loads(index(image(b"attestation")))["manifests"][0]
        document = json.loads(index(content))
        document["manifests"][0]["platform"] = {"os": "linux", "architecture": "amd64"}
        attestation["platform"] = {"os": "unknown", "architecture": "unknown"}
        document["manifests"].insert(0, attestation)
        digest = upstream.add_manifest(REPO, json.dumps(document).encode(), OCI_INDEX, "2")
    async with site({**RULE, "unseen": "created"}) as mirror:
        if days:
            refusal = await meaning(mirror, "2")
            assert f"until 2027-01-{15 + days} 08:00 UTC; pull it by digest, or ask" in refusal
            assert await meaning(mirror, digest) == digest
            clock.pass_by(days * DAY - 1)
            assert "waits 3 d" in await meaning(mirror, "2")
            clock.pass_by(1)
        assert await meaning(mirror, "2") == digest


async def test_a_copy_of_an_index_may_lack_platforms(site, upstream, clock):
    old = dated("2020-01-01T00:00:00Z")
    upstream.add_image(REPO, old)
    platforms = [{"os": "linux", "architecture": each} for each in ("arm64", "amd64")]
    for tag, content in ("2", index(A, old)), ("3", index(B, C)):
        document = json.loads(content)
        for entry, platform in zip(document["manifests"], platforms, strict=True):
            entry["platform"] = platform
        upstream.add_manifest(REPO, json.dumps(document).encode(), OCI_INDEX, tag)
    del upstream.manifests[REPO, A.digest]
    async with site({**RULE, "unseen": "created"}) as mirror:
        assert (await meaning(mirror, "2")).startswith("sha256:")
        assert "waits 3 d" in await meaning(mirror, "3"), "nothing that tells its age"


async def test_an_unseen_image_can_wait_whatever_it_says(site, upstream, clock):
    upstream.add_image(REPO, dated("2020-01-01T00:00:00Z"), "2")
    async with site({**RULE, "unseen": "deny"}) as mirror:
        assert "waits 3 d" in await meaning(mirror, "2")
        clock.pass_by(3 * DAY)
        assert (await meaning(mirror, "2")).startswith("sha256:")


async def test_upstream_that_does_not_send_the_date_is_no_pass(site, upstream):
    upstream.faults.append(Fault(kind="blob", status=500, times=99))
    async with site({**RULE, "unseen": "created"}) as mirror:
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 502


async def test_pulls_by_digest_can_be_checked_too(site, upstream, clock):
    first = index(A, B)
    for each in (B, C):
        upstream.add_image(REPO, each)
    upstream.add_manifest(REPO, first, OCI_INDEX, "2")
    async with site({**RULE, "unseen": "deny", "digests": "check"}) as mirror:
        assert "waits 3 d" in await meaning(mirror, "2")
        refusal = await meaning(mirror, C.digest)
        assert refusal.startswith(f"docker.io/library/app@{C.digest}, first seen 0 s ago; the rule")
        assert "pull it by digest" not in refusal
        clock.pass_by(3 * DAY)
        assert await meaning(mirror, "2") == digest_of(first)
        for digest in (digest_of(first), A.digest, B.digest, C.digest):
            assert await meaning(mirror, digest) == digest
        other = image(b"other")
        upstream.add_image(REPO, other, "3")
        assert "waits 3 d" in await meaning(mirror, other.digest)


@pytest.mark.parametrize("by", ["release", "age"])
async def test_what_an_index_lists_passes_with_it(tmp_path, site, upstream, clock, by):
    rule = {**RULE, "unseen": "deny", "digests": "check"}
    both = index(A, B)
    upstream.add_image(REPO, B)
    digest = upstream.add_manifest(REPO, both, OCI_INDEX)
    async with site(rule) as mirror:
        if by == "release":
            await released(config(tmp_path, upstream, rule), [f"app@{digest}"])
        else:
            assert "waits 3 d" in await meaning(mirror, digest)
            clock.pass_by(3 * DAY)
        assert "waits 3 d" in await meaning(mirror, B.digest), "not yet"
        for each in (digest, A.digest, B.digest):
            assert await meaning(mirror, each) == each


@pytest.mark.parametrize("images", ["app", "app:2", "other"])
async def test_an_exception_is_for_what_its_tags_mean_too(tmp_path, site, upstream, images):
    """A client that gets a tag asks for its digest, and for a manifest of the index, next."""
    first = {"images": [images]}
    rule = {**RULE, "images": ["**" if images == "app" else "app:1"], "unseen": "deny"}
    for each in (B, C):
        upstream.add_image(REPO, each)
    both = upstream.add_manifest(REPO, index(B, C), OCI_INDEX, "2")
    async with site(first, {**rule, "digests": "check"}) as mirror:
        for reference in ("2", both, B.digest, C.digest):
            assert (await meaning(mirror, reference)).startswith("sha256:")
        if images != "app":
            assert "waits 3 d" in await meaning(mirror, "1")
            assert "waits 3 d" in await meaning(mirror, A.digest)
        said = await explained(config(tmp_path, upstream, first, rule), f"app@{A.digest}")
        assert [each["applies"] for each in said["rules"]] == [False, images != "app"]


async def test_a_tag_means_the_same_to_clients_that_accept_less(site, upstream):
    one = {"Accept": OCI_MANIFEST}
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror, **one) == A.digest
        upstream.add_manifest(REPO, index(A, B), OCI_INDEX, "2")
        assert await meaning(mirror, "2") == digest_of(index(A, B))
        upstream.add_image(REPO, C, "2")
        assert await meaning(mirror, "2", **one) == C.digest, "no use for the index"


async def test_what_was_cached_before_there_was_a_rule_has_been_seen(site, upstream, clock):
    async with site({"images": ["docker.io/other/**"]}) as mirror:
        for tag in ("1", "2"):
            upstream.add_image(REPO, A, tag)
            assert await meaning(mirror, tag) == A.digest
        clock.pass_by(4 * DAY)
        upstream.add_image(REPO, B, "3")
        assert await meaning(mirror, "3") == B.digest
    upstream.add_image(REPO, C, "2")
    async with site({**RULE, "unseen": "deny"}) as mirror:
        assert await meaning(mirror) == A.digest, "known for four days"
        assert await meaning(mirror, "2") == A.digest, "it has meant this"
        assert "waits 3 d" in await meaning(mirror, "3"), "seen just now"


async def test_a_held_digest_that_is_nowhere_any_more_is_a_404_that_says_so(
    tmp_path, site, upstream
):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        with pytest.raises(UserError, match="a digest of an image, such as app@sha256"):
            await released(config(tmp_path, upstream), [A.digest])
        with pytest.raises(UserError, match=r"content of an image of .* or of a held tag"):
            await removed(config(tmp_path, upstream), [A.digest])
        await removed(config(tmp_path, upstream), [A.digest], force=True)
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
        assert answer.headers["Cache-Status"] == "mirror; fwd=miss; stored; detail=held"
        await removed(config(tmp_path, upstream), [A.digest], force=True)
        del upstream.manifests[REPO, A.digest]
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
        assert answer.status == 404
        said = json.loads(answer.body)["errors"][0]["message"]
        assert said.startswith("docker.io: has not what a held tag means: docker.io/library/app:1")
        assert said.endswith(f"for: mirror release docker.io/library/app@{B.digest}")


async def test_a_block_of_the_new_digest_leaves_the_tag_its_former_meaning(
    tmp_path, site, upstream
):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        await blocked(config(tmp_path, upstream), [B.digest], "")
        assert await meaning(mirror) == A.digest
        assert "is blocked" in await meaning(mirror, B.digest)


async def test_a_tag_has_not_meant_what_was_blocked(tmp_path, site, upstream, clock):
    async with site() as mirror:
        await blocked(config(tmp_path, upstream), [A.digest], "")
        assert "is blocked" in await meaning(mirror)
        clock.pass_by(4 * DAY)
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == B.digest, "the rule lets what is new pass"


async def test_a_block_of_a_held_tag_is_for_both_of_its_digests(tmp_path, site, upstream):
    async with site() as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        await blocked(config(tmp_path, upstream), ["app:1"], "")
        for each in ("1", A.digest, B.digest):
            assert "is blocked" in await meaning(mirror, each)


async def test_a_rule_that_is_tried_out_refuses_nothing_for_lack_of_a_date(site, upstream):
    upstream.faults.append(Fault(kind="blob", status=500, times=99))
    async with site({**RULE, "unseen": "created", "mode": "audit"}) as mirror:
        assert await meaning(mirror) == A.digest
        audited = f'mirror_policy_decisions_total{{decision="audited",upstream="{HUB}"}}'
        await eventually(mirror, audited, 2)


async def test_a_long_cooldown_is_written_out_and_one_without_end_is_a_mistake(
    tmp_path, site, upstream
):
    async with site({**RULE, "unseen": "deny", "cooldown": "1000d"}) as mirror:
        assert "waits 1000 d, until 2029-10-11" in await meaning(mirror)
    with pytest.raises(UserError, match="allowed: a time of at most 3650d; to refuse images, use"):
        config(tmp_path, upstream, {**RULE, "cooldown": "9999999d"})


async def test_a_rule_can_be_tried_out(site, upstream, clock, caplog):
    caplog.set_level("INFO")
    async with site({**RULE, "mode": "audit"}) as mirror:
        assert await meaning(mirror) == A.digest
        upstream.add_image(REPO, B, "1")
        for _ in range(2):
            assert await meaning(mirror) == B.digest
        audited = f'mirror_policy_decisions_total{{decision="audited",upstream="{HUB}"}}'
        await eventually(mirror, audited, 4)
    assert {each.decision for each in caplog.records if each.getMessage() == "policy"} == {
        "audited"
    }


async def test_the_first_rule_that_matches_counts(site, upstream):
    rules = [
        {"images": ["app:edge", "ghcr.io/**"]},
        {"images": ["**"], "cooldown": "3d", "unseen": "deny"},
    ]
    upstream.tags[REPO, "edge"] = A.digest
    async with site(*rules) as mirror:
        assert await meaning(mirror, "edge") == A.digest
        assert "the rule '**' waits" in await meaning(mirror, "1")


async def test_the_operator_can_release_a_digest(tmp_path, site, upstream, clock, caplog):
    named = config(tmp_path, upstream)
    async with site() as mirror:
        await meaning(mirror)
        with pytest.raises(UserError, match="app:9 is not known here"):
            await released(named, ["app:9"])
        with pytest.raises(UserError, match="not a glob"):
            await released(named, ["app:*"])
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == A.digest
        said = await released(named, ["app:1"])
        assert said["released"] == [{"image": "docker.io/library/app:1", "digest": B.digest}]
        assert await meaning(mirror) == B.digest
        (line,) = [each for each in caplog.records if each.getMessage() == "released"]
        assert line.by == "root"
        upstream.add_image(REPO, C, "1")
        assert await meaning(mirror) == B.digest
    await released(named, [f"app@{C.digest}"])
    async with site() as mirror:
        assert await meaning(mirror) == C.digest


async def test_an_image_is_explained(tmp_path, site, upstream, clock):
    named = config(tmp_path, upstream)
    other = {"images": ["ghcr.io/**"], "cooldown": "1d"}
    async with site(other, RULE, {"images": ["app:*"], "cooldown": "9d"}) as mirror:
        unknown = await explained(named, "app:1")
        assert (unknown["upstream_digest"], unknown["served_digest"]) == (None, None)
        await meaning(mirror)
        upstream.add_image(REPO, B, "1")
        await meaning(mirror)
        said = await explained(named, "app:1")
        assert (said["upstream_digest"], said["served_digest"]) == (B.digest, A.digest)
        assert [each["applies"] for each in said["rules"]] == [False, True, False]
        assert [each["why"] for each in said["rules"][::2]] == [
            "",
            "the first rule that matches counts",
        ]
        assert said["rules"][1]["decision"] == "held"
        assert said["rules"][1]["until"] == "2027-01-18T08:00:00Z"
        assert "waits 3 d" in said["rules"][1]["why"]
        await blocked(named, [A.digest], "evil")
        said = await explained(named, "app:1")
        assert said["served_digest"] is None
        assert "is blocked" in said["block"]
    pin = {"image": "app:1", "digest": C.digest, "note": "for now"}
    pinned = configured(tmp_path, {HUB: upstream.url}, pin=[pin], policy=[RULE])
    said = await explained(pinned, "app:1")
    assert said["served_digest"] == C.digest
    assert "(for now)" in said["pin"]


def test_an_image_that_upstream_was_not_asked_for_is_not_said_to_be_refused(tmp_path, log):
    directory = tmp_path / "cache"
    directory.mkdir()
    file = tmp_path / "mirror.toml"
    file.write_text(
        f'[cache]\ndirectory = "{directory}"\n[[policy]]\nimages = ["**"]\ncooldown = "3d"\n'
    )
    said = CliRunner().invoke(app, ["policy", "app:1", "--config", str(file)]).stdout.splitlines()
    assert said == [
        "image     docker.io/library/app:1",
        "upstream  not asked yet",
        "served    not decided yet",
        "the rule '**': undecided: upstream was not asked for this image yet",
    ]


async def test_the_digest_that_a_held_tag_means_is_not_evicted(site, upstream, clock):
    old = image(random_bytes(300_000, 1), marker="old")
    upstream.add_image(REPO, old, "1")
    async with site(cache={"max_size": "2MiB"}) as mirror:
        paths = [f"/v2/{REPO}/blobs/{digest}" for digest in old.digests]
        for path in paths:
            assert (await mirror.get(path)).status == 200
        assert await meaning(mirror) == old.digest
        upstream.add_image(REPO, B, "1")
        assert await meaning(mirror) == old.digest
        for seed in range(2, 10):
            blob = upstream.add_blob(random_bytes(300_000, seed))
            assert (await mirror.get(f"/v2/{REPO}/blobs/{blob}")).status == 200
        await eventually(mirror, "mirror_fills_in_progress", 0)
        async with limit():
            while not (await mirror.metrics())["mirror_evictions_total"]:
                await asyncio.sleep(0.01)
        upstream.blobs.clear()
        del upstream.manifests[REPO, old.digest]
        assert await meaning(mirror) == old.digest
        for path in paths:
            assert (await mirror.get(path)).status == 200


async def test_private_images_are_held_too(tmp_path, upstream, clock):
    ann = basic("ann", "secret")
    office = Office(upstream, bearer=False)
    office.add("team/app", A, ann)
    office.add("team/app", B, ann)
    upstream.add_image("team/app", A, "1")
    table = {HUB: {"url": upstream.url, "client_credentials": True}}
    tags = {"max_age": "0s"}
    async with running(tmp_path, table, clock=clock, policy=[RULE], tags=tags) as mirror:
        assert await meaning(mirror, repo="team/app", Authorization=ann) == A.digest
        upstream.add_image("team/app", B, "1")
        assert await meaning(mirror, repo="team/app", Authorization=ann) == A.digest
        clock.pass_by(3 * DAY)
        assert await meaning(mirror, repo="team/app", Authorization=ann) == B.digest


async def test_an_answer_from_memory_is_not_decided_again(tmp_path, upstream):
    upstream.add_image(REPO, A, "1")
    rules = [{"images": [f"docker.io/team{number}/**"]} for number in range(9)]
    tags = {"max_age": "1h"}
    async with running(tmp_path, {HUB: upstream.url}, policy=[*rules, RULE], tags=tags) as mirror:
        for _ in range(20):
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200
        allowed = f'mirror_policy_decisions_total{{decision="allowed",upstream="{HUB}"}}'
        await eventually(mirror, allowed, 2)  # a miss, and the hit that is repeated


async def test_an_answer_from_memory_ends_with_the_cooldown(tmp_path, upstream):
    """The clock of the machine itself: the answer may be repeated for the rest of a second."""
    upstream.add_image(REPO, A, "1")
    rule = {**RULE, "cooldown": "1s"}
    tags = {"max_age": "1h"}
    async with running(tmp_path, {HUB: upstream.url}, policy=[rule], tags=tags) as mirror:
        assert await meaning(mirror) == A.digest
    upstream.add_image(REPO, B, "1")
    async with running(tmp_path, {HUB: upstream.url}, policy=[rule], tags=tags) as mirror:
        async with limit():
            while (await mirror.get(f"/v2/{REPO}/manifests/1")).body != B.manifest:
                await asyncio.sleep(0.01)
        assert await meaning(mirror) == B.digest
