"""A signature approves one manifest in one repository, and nothing else."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.policy import ed25519ph
from mirror.policy.signatures import (
    Candidate,
    NotSignedError,
    Signed,
    fingerprint,
    parse_key,
    signer,
)
from tests.fakes.signing import KINDS, Signer, bundle, payload, statement, unrelated

DIGEST = f"sha256:{'5a' * 32}"
PLACE = "registry.test:5000/team/app"
SIGNED = Signed(Digest.parse(DIGEST), frozenset({PLACE, "docker.io/team/app"}))
ANN, EVE = Signer(), Signer()
LAYOUTS = ("old", "new")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=12,
)


def made(who: Signer, body: bytes, layout: str, **other: str) -> Candidate:
    if layout == "new":
        return Candidate(bundle(who, body, **other))
    return Candidate(body, who.sign(body))


def good(layout: str, digest: str = DIGEST, place: str = PLACE) -> bytes:
    return statement(digest) if layout == "new" else payload(digest, place)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_of_any_kind_of_key_is_known_as_its_key(kind: str, layout: str) -> None:
    who = Signer(kind)
    found = signer(made(who, good(layout), layout), SIGNED, [EVE.pem, who.pem])
    assert found == fingerprint(who.pem)
    with pytest.raises(NotSignedError, match="by none of the keys"):
        signer(made(who, good(layout), layout), SIGNED, [EVE.pem])


@pytest.mark.parametrize(
    ("body", "layout", "why"),
    [
        (payload(unrelated(), PLACE), "old", "another digest"),
        (statement(unrelated()), "new", "another digest"),
        (payload(DIGEST, "registry.test:5000/team/other"), "old", "another repository"),
        (payload(DIGEST, "elsewhere.test/team/app"), "old", "another repository"),
        (payload(DIGEST, "team/app"), "old", "another repository"),
        (payload(DIGEST, ""), "old", "another repository"),
        (payload(DIGEST, PLACE).replace(b"cosign", b"other"), "old", "something else"),
        (statement(DIGEST, "https://slsa.dev/provenance/v1"), "new", "an attestation"),
        (statement(DIGEST).replace(b"Statement/v1", b"Statement/v9"), "new", "another form"),
        (b"[]", "old", "another form"),
        (b"{}", "new", "another form"),
    ],
)
def test_what_the_key_signed_for_another_purpose_approves_nothing(
    body: bytes, layout: str, why: str
) -> None:
    with pytest.raises(NotSignedError, match=why):
        signer(made(ANN, body, layout), SIGNED, [ANN.pem])


@pytest.mark.parametrize("suffix", ["", ":1.2", f"@{DIGEST}", f":1@{DIGEST}"])
def test_the_repository_may_be_named_with_a_tag_or_digest(suffix: str) -> None:
    assert signer(made(ANN, payload(DIGEST, PLACE + suffix), "old"), SIGNED, [ANN.pem])


def test_a_statement_that_names_another_repository_is_refused() -> None:
    document = json.loads(statement(DIGEST))
    document["subject"][0]["name"] = "registry.test:5000/team/other"
    with pytest.raises(NotSignedError, match="another repository"):
        signer(made(ANN, json.dumps(document).encode(), "new"), SIGNED, [ANN.pem])


def test_the_type_of_the_payload_is_signed_too() -> None:
    with pytest.raises(NotSignedError, match="another form"):
        signer(made(ANN, statement(DIGEST), "new", kind="text/plain"), SIGNED, [ANN.pem])
    document = json.loads(bundle(ANN, statement(DIGEST), kind="text/plain"))
    document["dsseEnvelope"]["payloadType"] = "application/vnd.in-toto+json"
    with pytest.raises(NotSignedError, match="none of the keys"):
        signer(Candidate(json.dumps(document).encode()), SIGNED, [ANN.pem])


@given(st.data(), st.sampled_from(LAYOUTS))
def test_a_changed_bit_is_no_signature(data: st.DataObject, layout: str) -> None:
    body = good(layout)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([body[at] ^ (1 << data.draw(st.integers(0, 7)))]) + body[at + 1 :]
    if layout == "old":
        candidate = Candidate(changed, ANN.sign(body))
    else:
        document = json.loads(bundle(ANN, body))
        document["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        candidate = Candidate(json.dumps(document).encode())
    with pytest.raises(NotSignedError):
        signer(candidate, SIGNED, [ANN.pem])


@given(JSON, st.sampled_from(LAYOUTS))
def test_whatever_the_key_signed_is_refused(document: Any, layout: str) -> None:
    with pytest.raises(NotSignedError):
        signer(made(ANN, json.dumps(document).encode(), layout), SIGNED, [ANN.pem])


@given(JSON, st.sampled_from(LAYOUTS), st.data())
def test_a_part_of_another_form_is_refused(part: Any, layout: str, data: st.DataObject) -> None:
    """One part of what would be good is replaced, and then signed."""
    document = json.loads(good(layout))
    table = document
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        if not isinstance(table[key], dict) or not table[key] or data.draw(st.booleans()):
            break
        table = table[key]
    before = table[key]
    table[key] = part
    body = json.dumps(document).encode()
    unimportant = key in {"optional", "predicate"} or part == before
    try:
        signer(made(ANN, body, layout), SIGNED, [ANN.pem])
    except NotSignedError:
        assert not unimportant
    else:
        assert unimportant


@given(st.binary(max_size=300), st.none() | st.text(max_size=100))
def test_any_bytes_are_refused(body: bytes, signature: str | None) -> None:
    with pytest.raises(NotSignedError):
        signer(Candidate(body, signature), SIGNED, [ANN.pem])


#: By cosign 3.1.3 with an Ed25519 key, which means Ed25519ph.
COSIGN_KEY = b"""\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA/ZsKtsdCPobBVGy+8CuQncX8S++EPNTz2xefW4k8rZA=
-----END PUBLIC KEY-----
"""
COSIGN_DIGEST = "sha256:744ca61c1450222cd125df42379b6babaf71035c60450b28c75b2746b3af6eb2"
COSIGN_PAYLOAD = (
    b'{"critical":{"identity":{"docker-reference":"127.0.0.1:19208/library/app"},"image":'
    b'{"docker-manifest-digest":"%b"},"type":"cosign container image signature"},"optional":null}'
) % COSIGN_DIGEST.encode()
COSIGN_SIGNATURE = (
    "AXekOBygowAFPii9gTMU1CxUEfBV7dKDzKJWpq/x1hXDVl1EEZ2366mbx4NHMC0M1i6+AZrSTHMZ6xhCnboyAQ=="
)


def test_the_pre_hashed_signatures_of_cosign_are_known() -> None:
    place = Signed(Digest.parse(COSIGN_DIGEST), frozenset({"127.0.0.1:19208/library/app"}))
    assert signer(Candidate(COSIGN_PAYLOAD, COSIGN_SIGNATURE), place, [COSIGN_KEY])


def test_the_vector_of_the_specification_is_verified() -> None:
    """RFC 8032, 7.3."""
    secret = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
    public = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    signature = bytes.fromhex(
        "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
        "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
    )
    assert ed25519ph.verifies(public, signature, b"abc")
    assert not ed25519ph.verifies(public, signature, b"abd")
    assert not ed25519ph.verifies(public, signature[:-1], b"abc")
    order = 2**252 + 27742317777372353535851937790883648493
    larger = int.from_bytes(signature[32:], "little") + order
    malleable = signature[:32] + larger.to_bytes(32, "little")
    assert not ed25519ph.verifies(public, malleable, b"abc")


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64), st.binary())
def test_no_bytes_are_a_key_and_a_pre_hashed_signature(
    public: bytes, signature: bytes, message: bytes
) -> None:
    assert not ed25519ph.verifies(public, signature, message)


@given(st.data())
def test_a_changed_bit_is_no_pre_hashed_signature(data: st.DataObject) -> None:
    raw = base64.b64decode(COSIGN_SIGNATURE)
    at, bit = data.draw(st.integers(0, 63)), data.draw(st.integers(0, 7))
    changed = raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :]
    place = Signed(Digest.parse(COSIGN_DIGEST), frozenset({"127.0.0.1:19208/library/app"}))
    with pytest.raises(NotSignedError):
        signer(Candidate(COSIGN_PAYLOAD, base64.b64encode(changed).decode()), place, [COSIGN_KEY])


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END"])
def test_a_file_without_a_key_is_a_mistake(pem: bytes) -> None:
    with pytest.raises(ValueError, match="a PEM file with a public key"):
        parse_key(pem)


def test_a_weak_key_and_a_key_of_another_curve_are_mistakes() -> None:
    keys: list[Any] = [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
    ]
    for key in keys:
        public = key.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(ValueError, match="a PEM file with a public key"):
            parse_key(pem)
