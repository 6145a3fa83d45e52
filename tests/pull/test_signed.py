"""Only what a key has signed leaves the mirror, where a rule demands it."""

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mirror.admin.commands import explained
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, Fault, image
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of, index
from tests.fakes.signing import Signer, attach, bundle, signature, statement
from tests.fakes.sigstore import GITHUB, WORKFLOW, Sigstore, keyless
from tests.running import Mirror, configured, eventually, running
from tests.waiting import LIMIT_SECONDS

pytestmark = pytest.mark.slow

HUB = "docker.io"
REPO = "library/app"
APP, OTHER = image(b"layer", marker="app"), image(b"other", marker="other")
ANN, EVE = Signer(), Signer("ed25519")
LAYOUTS = ("old", "new")
FULCIO = Sigstore()
RELEASES = {"identity": WORKFLOW.replace("v1.2", "v*"), "issuer": GITHUB}


@pytest.fixture
def site(tmp_path, upstream: FakeRegistry):
    """Opens a mirror that demands a signature of Ann's or of another key."""
    upstream.add_image(REPO, APP, "1")
    for name, key in (("ann", ANN), ("bob", Signer("rsa"))):
        (tmp_path / f"{name}.pub").write_bytes(key.pem)

    @asynccontextmanager
    async def site(**changes: Any):
        keys = [str(tmp_path / f"{name}.pub") for name in ("bob", "ann")]
        rule = {"images": ["docker.io/**"], "signed_by": keys, **changes}
        quick = {"max_age": "0s", "negative_max_age": "0s"}
        async with running(
            tmp_path / "cache", {HUB: upstream.url}, policy=[rule], tags=quick
        ) as mirror:
            yield mirror

    return site


def place(upstream: FakeRegistry, repo: str = REPO) -> str:
    """The name of a repository for the program that signs."""
    return f"127.0.0.1:{upstream.port}/{repo}"


async def asked(mirror: Mirror, reference: str = "1") -> tuple[int, str]:
    """The status of a pull, and the message of a refusal."""
    path = f"/v2/{REPO}/manifests/{reference}"
    answer = await mirror.get(path)
    assert (await mirror.get(path, "HEAD")).status == answer.status
    if answer.status == 200:
        return 200, ""
    return answer.status, json.loads(answer.body)["errors"][0]["message"]


async def decisions(mirror: Mirror) -> dict[str, float]:
    """The figures of all decisions; they are counted before a client has its answer."""
    found = (await mirror.metrics()).items()
    name = "mirror_policy_decisions_total"
    return {key.split('"')[1]: value for key, value in found if key.startswith(name)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("api", [True, False])
async def test_what_is_signed_passes_and_the_signature_is_remembered(site, upstream, layout, api):
    upstream.referrers_api = api
    async with site() as mirror:
        status, why = await asked(mirror)
        assert status == 403
        assert why == (
            f"docker.io/library/app:1 ({APP.digest}) is not signed by a key of the rule "
            "'docker.io/**': no signature was found; pull a signed version, or ask the operator "
            "to change signed_by"
        )
        unsigned = f'mirror_policy_decisions_total{{decision="unsigned",upstream="{HUB}"}}'
        await eventually(mirror, unsigned, 2)
        attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), layout))
        assert await asked(mirror) == (200, "")
    upstream.tags = {("library/app", "1"): APP.digest}
    upstream.manifests = {
        key: each for key, each in upstream.manifests.items() if key[1] == APP.digest
    }
    async with site() as mirror:
        assert await asked(mirror) == (200, "")
    await upstream.stop()
    async with site() as mirror:
        assert await asked(mirror) == (200, "")
    await upstream.start()


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_what_another_key_has_signed_or_this_key_for_another_digest_is_refused(
    site, upstream, layout
):
    attach(upstream, REPO, APP.digest, *signature(EVE, APP.digest, place(upstream), layout))
    async with site() as mirror:
        assert "there is a signature by none of the keys" in (await asked(mirror))[1]
        other = signature(ANN, OTHER.digest, place(upstream), layout)
        attach(upstream, REPO, APP.digest, *other)
        assert (await asked(mirror))[0] == 403


async def test_a_signature_from_another_repository_is_refused(site, upstream):
    moved = signature(ANN, APP.digest, place(upstream, "library/other"), "old")
    attach(upstream, REPO, APP.digest, *moved)
    async with site() as mirror:
        status, why = await asked(mirror)
        assert status == 403
        assert f"there is a signature for another repository, '{place(upstream)[:-3]}" in why


async def test_a_tag_has_not_meant_what_was_refused_for_lack_of_a_signature(site, upstream):
    """A release that was pushed again because its signature was forgotten."""
    attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), "new"))
    unsigned = image(b"unsigned", marker="unsigned")
    upstream.add_image(REPO, unsigned, "1")
    async with site(cooldown="3d", unseen="allow") as mirror:
        assert (await asked(mirror))[0] == 403
        upstream.add_image(REPO, APP, "1")
        assert await asked(mirror) == (200, "")
        upstream.add_image(REPO, unsigned, "1")
        assert await asked(mirror) == (200, ""), "held"


async def test_an_attestation_is_no_signature(site, upstream):
    scan = statement(APP.digest, "https://cosign.sigstore.dev/attestation/vuln/v1")
    attach(upstream, REPO, APP.digest, bundle(ANN, scan))
    async with site() as mirror:
        assert "there is an attestation, not a signature" in (await asked(mirror))[1]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_signature_of_an_index_is_for_its_manifests_too(site, upstream, layout):
    listed = index(APP, OTHER)
    upstream.add_image(REPO, OTHER)
    digest = upstream.add_manifest(REPO, listed, OCI_INDEX, "1")
    attach(upstream, REPO, digest, *signature(ANN, digest, place(upstream), layout))
    alone = image(b"alone")
    upstream.add_image(REPO, alone)
    async with site(digests="check") as mirror:
        assert (await asked(mirror, APP.digest))[0] == 403
        assert await asked(mirror) == (200, "")
        for each in (digest, APP.digest, OTHER.digest):
            assert await asked(mirror, each) == (200, "")
        assert (await asked(mirror, alone.digest))[0] == 403


async def test_signatures_and_referrers_themselves_are_always_served(site, upstream):
    for layout in LAYOUTS:
        attach(upstream, REPO, APP.digest, *signature(EVE, APP.digest, place(upstream), layout))
    mark = APP.digest.replace(":", "-")
    async with site(digests="check", cooldown="3d", unseen="deny") as mirror:
        assert (await asked(mirror))[0] == 403
        assert await asked(mirror, f"{mark}.sig") == (200, "")
        answer = await mirror.get(f"/v2/{REPO}/referrers/{APP.digest}")
        (entry,) = json.loads(answer.body)["manifests"]
        assert await asked(mirror, entry["digest"]) == (200, "")
        (layer,) = json.loads(upstream.manifests[REPO, entry["digest"]][0])["layers"]
        assert (await mirror.get(f"/v2/{REPO}/blobs/{layer['digest']}")).status == 200


@pytest.mark.parametrize("kind", ["referrers", "blob"])
async def test_a_signature_that_cannot_be_asked_for_now_is_503(site, upstream, kind):
    attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), "new"))
    upstream.faults.append(Fault(kind=kind, status=500, times=99))
    async with site() as mirror:
        status, why = await asked(mirror)
        assert status == 503
        assert why.startswith(
            f"the signatures of docker.io/library/app:1 ({APP.digest}) cannot be checked now: "
        )
        assert await decisions(mirror) == {"unsigned": 2}, "each of the two requests once"
        upstream.faults.clear()


async def test_a_404_that_is_only_remembered_is_503_too(site, upstream):
    async with site() as mirror:
        assert (await asked(mirror))[0] == 403
    await upstream.stop()
    async with site() as mirror:
        assert (await asked(mirror))[0] == 503
    await upstream.start()


async def test_it_is_explained_whether_a_signature_was_verified(tmp_path, site, upstream):
    rule = {"images": ["docker.io/**"], "signed_by": [str(tmp_path / "ann.pub")]}
    named = configured(tmp_path / "cache", {HUB: upstream.url}, policy=[rule])
    async with site() as mirror:
        await asked(mirror)
        (said,) = (await explained(named, "app:1"))["rules"]
        assert said["decision"] is None
        assert "no signature was verified yet" in said["why"]
        attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), "new"))
        await asked(mirror)
        (said,) = (await explained(named, "app:1"))["rules"]
        assert (said["decision"], said["serves"]) == ("allowed", APP.digest)


async def test_signatures_can_be_tried_out(site):
    async with site(mode="audit") as mirror:
        assert await asked(mirror) == (200, "")
        audited = f'mirror_policy_decisions_total{{decision="audited",upstream="{HUB}"}}'
        await eventually(mirror, audited, 2)


@pytest.mark.parametrize("kind", ["referrers", "blob"])
async def test_signatures_that_cannot_be_asked_for_refuse_nothing_when_tried_out(
    site, upstream, kind
):
    attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), "new"))
    upstream.faults.append(Fault(kind=kind, status=500, times=99))
    async with site(mode="audit") as mirror:
        assert await asked(mirror) == (200, "")
        assert await decisions(mirror) == {"audited": 2}


async def test_the_newest_of_many_signatures_counts(site, upstream):
    """An image that is signed every night; the last key is the one of the rule."""
    digest = attach(upstream, REPO, APP.digest, *signature(EVE, APP.digest, place(upstream), "old"))
    document = json.loads(upstream.manifests[REPO, digest][0])
    body, signed = signature(ANN, APP.digest, place(upstream), "old")
    newest = {**document["layers"][0], "digest": upstream.add_blob(body), "size": len(body)}
    newest["annotations"] = {"dev.cosignproject.cosign/signature": signed}
    document["layers"] = [*document["layers"] * 100, newest]
    tag = f"{APP.digest.replace(':', '-')}.sig"
    upstream.add_manifest(REPO, json.dumps(document).encode(), OCI_MANIFEST, tag)
    async with site() as mirror:
        assert await asked(mirror) == (200, "")


@pytest.mark.parametrize("garbled", [b"{}", b" " * 5_000_000 + b"{}"])
async def test_a_garbled_signature_hides_no_other_and_is_no_lack_of_one(site, upstream, garbled):
    upstream.add_manifest(REPO, garbled, OCI_MANIFEST, f"{APP.digest.replace(':', '-')}.sig")
    async with site() as mirror:
        status, why = await asked(mirror)
        assert (status, "cannot be checked now: docker.io: " in why) == (503, True)
        attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), "new"))
        assert await asked(mirror) == (200, "")


async def test_hostile_signatures_do_no_harm(site, upstream):
    """Whatever is attached, the good one beside it counts."""
    good, written = signature(ANN, APP.digest, place(upstream), "old")
    attach(upstream, REPO, APP.digest, good, written)
    mark = f"{APP.digest.replace(':', '-')}.sig"
    body, media_type = upstream.manifests[REPO, upstream.tags[REPO, mark]]
    document = json.loads(body)
    (layer,) = document["layers"]
    large = upstream.add_blob(b"x" * 5_000_000)
    document["layers"] = [
        {**layer, "annotations": {}},
        {**layer, "annotations": {"dev.cosignproject.cosign/signature": "%"}},
        {**layer, "digest": f"sha256:{'0' * 64}"},
        {**layer, "digest": large, "size": 5_000_000},
        {**layer, "mediaType": "text/plain"},
        layer,
    ]
    upstream.add_manifest(REPO, json.dumps(document).encode(), media_type, mark)
    async with site() as mirror:
        assert await asked(mirror) == (200, "")
        assert digest_of(upstream.manifests[REPO, APP.digest][0]) == APP.digest


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root.json").write_text(json.dumps(FULCIO.root))
    return {"identities": [RELEASES], "trusted_root": str(tmp_path / "root.json")}


@pytest.mark.parametrize("api", [True, False])
async def test_what_an_identity_signed_passes_and_is_remembered(
    tmp_path, site, upstream, root, api
):
    upstream.referrers_api = api
    async with site(signed_by=[], **root) as mirror:
        attach(upstream, REPO, APP.digest, keyless(FULCIO, APP.digest, issuer="https://eve.test"))
        status, why = await asked(mirror)
        assert status == 403
        assert why == (
            f"docker.io/library/app:1 ({APP.digest}) is not signed by an identity of the rule "
            f"'docker.io/**': there is a signature by '{WORKFLOW}' with a token of another issuer; "
            "pull a signed version, or ask the operator to change identities"
        )
        attach(upstream, REPO, APP.digest, keyless(Sigstore(), APP.digest))
        assert "a signature that does not verify: " in (await asked(mirror))[1]
        attach(upstream, REPO, APP.digest, keyless(FULCIO, APP.digest))
        assert await asked(mirror) == (200, "")
    await upstream.stop()
    async with site(signed_by=[], **root) as mirror:
        assert await asked(mirror) == (200, "")
    other = {**RELEASES, "identity": "ann@example.com"}
    async with site(signed_by=[], **{**root, "identities": [other]}) as mirror:
        assert (await asked(mirror))[0] == 503
    (tmp_path / "root.json").write_text(json.dumps(Sigstore().root))
    async with site(signed_by=[], **root) as mirror:
        assert (await asked(mirror))[0] == 503
    await upstream.start()


@pytest.mark.parametrize("by", ["a key", "an identity"])
async def test_a_key_or_an_identity_is_enough(site, upstream, root, by):
    async with site(**root) as mirror:
        status, why = await asked(mirror)
        assert status == 403
        assert " is not signed by a key or an identity of the rule " in why
        assert why.endswith("ask the operator to change signed_by or identities")
        attach(upstream, REPO, APP.digest, *signature(EVE, APP.digest, place(upstream), "new"))
        assert "there is a signature by none of the keys" in (await asked(mirror))[1]
        signed: tuple[bytes, str | None] = keyless(FULCIO, APP.digest), None
        if by == "a key":
            signed = signature(ANN, APP.digest, place(upstream), "new")
        attach(upstream, REPO, APP.digest, *signed)
        assert await asked(mirror) == (200, "")


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_signature_by_a_key_says_nothing_where_only_identities_count(
    site, upstream, root, layout
):
    attach(upstream, REPO, APP.digest, *signature(ANN, APP.digest, place(upstream), layout))
    async with site(signed_by=[], **root) as mirror:
        status, why = await asked(mirror)
        assert status == 403
        assert "there is a signature by a key, or in a tag .sig, but the rule has no keys" in why


async def test_it_is_explained_whether_an_identity_was_verified(tmp_path, site, upstream, root):
    named = configured(
        tmp_path / "cache", {HUB: upstream.url}, policy=[{"images": ["docker.io/**"], **root}]
    )
    async with site(**root) as mirror:
        attach(upstream, REPO, APP.digest, keyless(FULCIO, APP.digest))
        await asked(mirror)
        (said,) = (await explained(named, "app:1"))["rules"]
        assert (said["decision"], said["serves"]) == ("allowed", APP.digest)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trusted_root": ""}, "0: found these keys together, allowed: identities and trusted_ro"),
        ({"identities": []}, "0: found these keys together, allowed: identities and trusted_root"),
        ({"trusted_root": "a.pub"}, "0.trusted_root: .*allowed: a trusted_root.json of Sigstore"),
        ({"trusted_root": "none"}, "0.trusted_root: .*allowed: a text file that can be read"),
        ({"identities": "ann"}, "0.identities: .*allowed: a list of tables with identity and iss"),
        ({"identities": ["ann"]}, "0.identities.0: .*allowed: a table"),
        ({"identities": [{"identity": "ann"}]}, "0.identities.0.issuer: is missing"),
        (
            {"identities": [{**RELEASES, "issuer": "github.com"}]},
            "0.identities.0.issuer: found 'github.com', allowed: an address such as https://token",
        ),
        (
            {"identities": [{**RELEASES, "identity": " "}]},
            "0.identities.0.identity: found ' ', allowed: an identity or a glob",
        ),
        (
            {"identities": [{**RELEASES, "identity": "https://a/b@refs/**v"}]},
            r"0.identities.0.identity: found 'https://a/b@refs/\*\*v', allowed: .. by itself",
        ),
        (
            {"identities": [{**RELEASES, "subject": "ann"}]},
            r"0.identities.0.subject: no such key .there are: identity, issuer.",
        ),
    ],
)
def test_each_mistake_about_identities_is_one_line(tmp_path, root, changes, told):
    (tmp_path / "a.pub").write_bytes(ANN.pem)
    if changes.get("trusted_root"):
        changes = {"trusted_root": str(tmp_path / changes["trusted_root"])}
    rule = {"images": ["**"], **root, **changes}
    with pytest.raises(UserError, match=rf"^command line: policy\.{told}[^\n]*$"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, policy=[rule])


@pytest.mark.long
@pytest.mark.slow
def test_only_identities_need_the_extra(tmp_path, root):
    program = (
        "import sys; sys.modules['sigstore'] = None; "
        "from mirror.cli.root import main; sys.argv[0] = 'mirror'; main()"
    )
    (tmp_path / "ann.pub").write_bytes(ANN.pem)
    file = tmp_path / "mirror.toml"
    command = [sys.executable, "-c", program, "check", "--config", str(file)]
    key = f'[[policy]]\nimages = ["**"]\nsigned_by = ["{tmp_path / "ann.pub"}"]\n'
    identity = (
        f'identities = [{{ identity = "a", issuer = "{GITHUB}" }}]\n'
        f'trusted_root = "{root["trusted_root"]}"\n'
    )
    lacking = (
        "mirror: [[policy]] trusted_root is set, but sigstore is not installed: "
        "pip install 'container-mirror[sigstore]', or remove identities and trusted_root\n"
    )
    for text, code, told in ((key, 0, ""), (key + identity, 1, lacking)):
        file.write_text(text)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        assert (done.returncode, done.stderr) == (code, told)


def test_a_file_without_a_key_is_a_mistake(tmp_path):
    file = tmp_path / "key.pub"
    file.write_text("no key")
    rule = {"images": ["**"], "signed_by": [str(file)]}
    with pytest.raises(UserError, match=r"policy\.0\.signed_by\.0: .*allowed: a PEM file with"):
        configured(tmp_path, {HUB: "http://127.0.0.1:9"}, policy=[rule])
