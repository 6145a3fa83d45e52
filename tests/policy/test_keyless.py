"""A keyless signature counts for an identity, if all of Sigstore's evidence is there."""

import base64
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.policy.keyless import keyless_signer, parse_root
from mirror.policy.rules import Identity
from mirror.policy.signatures import NotSignedError, Signed, identity_mark
from tests.fakes.signing import statement, unrelated
from tests.fakes.sigstore import GITHUB, WORKFLOW, Authority, Sigstore, key

pytestmark = pytest.mark.slow

MANIFEST = b'{"schemaVersion": 2}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
SIGNED = Signed(Digest.parse(DIGEST), frozenset({"docker.io/team/app"}))
SITE = Sigstore()
ROOT = json.dumps(SITE.root).encode()
RELEASES = Identity(WORKFLOW.replace("v1.2", "v*"), GITHUB, ROOT)
ANN = Identity("ann@example.com", "https://accounts.example.com", ROOT)
BODIES = {"dsse": statement(DIGEST), "message": MANIFEST}
LATE = timedelta(hours=1)

Bundle = dict[str, Any]


def found(bundle: Bundle, *identities: Identity, signed: Signed = SIGNED) -> str:
    return keyless_signer(json.dumps(bundle).encode(), signed, identities or (ANN, RELEASES))


def why_not(bundle: Bundle, *identities: Identity, signed: Signed = SIGNED) -> str:
    with pytest.raises(NotSignedError) as caught:
        found(bundle, *identities, signed=signed)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("layout", ["dsse", "message"])
@pytest.mark.parametrize("timestamps", [0, 1])
def test_a_signature_is_known_as_its_identity(layout: str, timestamps: int) -> None:
    made = SITE.bundle(BODIES[layout], layout=layout, timestamps=timestamps)
    assert found(made) == identity_mark(RELEASES)
    made = SITE.bundle(BODIES[layout], ANN.glob, ANN.issuer, layout=layout, timestamps=timestamps)
    assert found(made) == identity_mark(ANN)


@pytest.mark.parametrize(
    ("who", "issuer", "why"),
    [
        (WORKFLOW.replace("org/", "evil/"), GITHUB, "https://github.com/evil/app"),
        (WORKFLOW.replace("v1.2", "v1/../x"), GITHUB, "none of the identities"),
        (WORKFLOW.replace("org/", "\x1b[2J/"), GITHUB, "none of the identities"),
        (WORKFLOW, ANN.issuer, "with a token of another issuer"),
        (ANN.glob, GITHUB, "'ann@example.com' with a token of another issuer"),
        ("xann@example.com", ANN.issuer, "none of the identities"),
    ],
)
def test_another_identity_or_issuer_is_refused(who: str, issuer: str, why: str) -> None:
    assert why in why_not(SITE.bundle(BODIES["dsse"], who, issuer))


@pytest.mark.parametrize("layout", ["dsse", "message"])
@pytest.mark.parametrize(
    ("site", "timestamps"),
    [
        (Sigstore(Authority("fulcio"), SITE.ct, SITE.log, SITE.tsa, SITE.clock), 0),
        (Sigstore(SITE.ca, key(), SITE.log, SITE.tsa, SITE.clock), 0),
        (Sigstore(SITE.ca, SITE.ct, key(), SITE.tsa, SITE.clock), 0),
        (Sigstore(SITE.ca, SITE.ct, SITE.log, Authority("tsa root"), key()), 1),
    ],
    ids=["CA", "CT log", "transparency log", "timestamp authority"],
)
def test_another_authority_or_log_is_refused(site: Sigstore, layout: str, timestamps: int) -> None:
    why_not(site.bundle(BODIES[layout], layout=layout, timestamps=timestamps))


@pytest.mark.parametrize("layout", ["dsse", "message"])
@pytest.mark.parametrize("timestamps", [0, 1])
def test_a_signature_after_the_certificate_ended_is_refused(layout: str, timestamps: int) -> None:
    late = SITE.bundle(BODIES[layout], layout=layout, timestamps=timestamps, late=LATE)
    assert "not valid at validation time" in why_not(late)


@pytest.mark.parametrize("layout", ["dsse", "message"])
def test_a_signature_at_an_unknown_time_is_refused(layout: str) -> None:
    unknown = SITE.bundle(BODIES[layout], layout=layout, timestamps=-1)
    assert "inclusion promise or signed timestamp" in why_not(unknown)


@pytest.mark.parametrize("layout", ["dsse", "message"])
def test_a_signature_for_another_digest_is_refused(layout: str) -> None:
    other = {"dsse": statement(unrelated()), "message": b"something else"}
    why_not(SITE.bundle(other[layout], layout=layout))


def test_what_a_statement_says_counts() -> None:
    scan = statement(DIGEST, "https://cosign.sigstore.dev/attestation/vuln/v1")
    assert why_not(SITE.bundle(scan)) == "an attestation, not a signature"
    elsewhere = json.loads(BODIES["dsse"])
    elsewhere["subject"][0]["name"] = "docker.io/team/other"
    assert "for another repository" in why_not(SITE.bundle(json.dumps(elsewhere).encode()))
    large = Signed(Digest.parse(f"sha512:{'5a' * 64}"), frozenset())
    assert found(SITE.bundle(statement(str(large.digest))), signed=large)
    of_message = SITE.bundle(MANIFEST, layout="message")
    assert why_not(of_message, signed=large) == "a signature of another form"


def _no_entry(bundle: Bundle) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def _no_proof(bundle: Bundle) -> None:
    del bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]


def _other_promise(bundle: Bundle) -> None:
    bundle["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = "1790000000"


def _other_entry(bundle: Bundle) -> None:
    other = SITE.bundle(BODIES["dsse"])["verificationMaterial"]["tlogEntries"]
    bundle["verificationMaterial"]["tlogEntries"] = other


def _other_certificate(bundle: Bundle) -> None:
    other = SITE.bundle(BODIES["dsse"])["verificationMaterial"]["certificate"]
    bundle["verificationMaterial"]["certificate"] = other


def _other_payload(bundle: Bundle) -> None:
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"] = {"a": 1}
    body = base64.b64encode(json.dumps(payload).encode()).decode()
    bundle["dsseEnvelope"]["payload"] = body


def _by_key(bundle: Bundle) -> None:
    del bundle["verificationMaterial"]["certificate"]
    bundle["verificationMaterial"]["publicKey"] = {"hint": "x"}


@pytest.mark.parametrize(
    "change",
    [
        _no_entry,
        _no_proof,
        _other_promise,
        _other_entry,
        _other_certificate,
        _other_payload,
        _by_key,
    ],
)
def test_what_was_tampered_with_is_refused(change: Callable[[Bundle], None]) -> None:
    bundle = SITE.bundle(BODIES["dsse"])
    assert found(bundle)
    change(bundle)
    why_not(bundle)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=8,
)
GOOD = SITE.bundle(BODIES["dsse"])


def _places(value: Any, place: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    named: Any = ()
    if isinstance(value, dict | list):
        named = value.items() if isinstance(value, dict) else enumerate(value)
    return [place, *(each for name, part in named for each in _places(part, (*place, name)))]


@given(st.sampled_from(_places(GOOD, ())[1:]), JSON)
def test_a_bundle_of_another_form_is_refused_in_one_line(
    place: tuple[Any, ...], value: Any
) -> None:
    bundle = json.loads(json.dumps(GOOD))
    part = bundle
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    with suppress(NotSignedError):  # a part that is not needed may have any value
        assert found(bundle) == identity_mark(RELEASES)


@pytest.mark.parametrize("lacking", ["ctlogs", "tlogs", "certificateAuthorities"])
def test_a_root_without_what_each_signature_needs_is_a_mistake(lacking: str) -> None:
    with pytest.raises(ValueError, match=r"trusted_root\.json of Sigstore with"):
        parse_root(json.dumps({**SITE.root, lacking: []}).encode())


def test_another_root_makes_another_identity() -> None:
    """What one root vouched for is asked again under another."""
    other = Identity(RELEASES.glob, RELEASES.issuer, json.dumps(Sigstore().root).encode())
    assert identity_mark(other) != identity_mark(RELEASES)
