"""Digests: parsing, printing, checking."""

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest, InvalidDigest

EMPTY_SHA256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ALGORITHMS = st.sampled_from(["sha256", "sha512"])
HEX_LENGTHS = {"sha256": 64, "sha512": 128}


def test_the_digest_of_nothing_is_the_well_known_one():
    assert str(Digest.of(b"")) == EMPTY_SHA256


@given(st.binary(), ALGORITHMS)
def test_a_digest_survives_being_printed_and_parsed(data: bytes, algorithm: str):
    digest = Digest.of(data, algorithm)
    assert digest.hex == hashlib.new(algorithm, data).hexdigest()
    assert Digest.parse(str(digest)) == digest


@given(st.text())
def test_any_text_is_a_digest_or_refused_as_none(text: str):
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert str(digest) == text


@given(ALGORITHMS, st.integers(min_value=0, max_value=140))
def test_only_the_exact_number_of_hex_digits_will_do(algorithm: str, length: int):
    text = f"{algorithm}:{'a' * length}"
    if length == HEX_LENGTHS[algorithm]:
        assert Digest.parse(text).hex == "a" * length
    else:
        with pytest.raises(InvalidDigest, match=str(HEX_LENGTHS[algorithm])):
            Digest.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "a" * 64,
        EMPTY_SHA256.upper(),
        "sha256:" + EMPTY_SHA256[7:].upper(),
        EMPTY_SHA256.replace("sha256", "md5"),
        EMPTY_SHA256.replace("sha256", "sha384"),
        EMPTY_SHA256.replace(":", "-"),
        EMPTY_SHA256 + "\n",
        " " + EMPTY_SHA256,
        EMPTY_SHA256[:-1] + "/",
        "sha256:" + "../" * 21 + "x",
        "sha256:" + "\u0661" * 64,  # digits to str.isdigit(), not to us
        "sha256::" + EMPTY_SHA256[8:],
    ],
)
def test_what_is_no_digest_is_refused(text: str):
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


def test_the_message_does_not_repeat_endless_input():
    with pytest.raises(InvalidDigest) as refused:
        Digest.parse("x" * 100_000)
    assert len(str(refused.value)) < 200


@given(st.lists(st.binary(max_size=16), max_size=8), ALGORITHMS)
def test_a_hasher_fed_piecemeal_matches_the_digest_of_the_whole(
    pieces: list[bytes], algorithm: str
):
    digest = Digest.of(b"".join(pieces), algorithm)
    hasher = digest.hasher()
    for piece in pieces:
        hasher.update(memoryview(piece))
    assert digest.matches(hasher)
    hasher.update(b"one byte more")
    assert not digest.matches(hasher)


def test_a_copied_hasher_goes_its_own_way():
    digest = Digest.of(b"ab")
    hasher = digest.hasher()
    hasher.update(b"a")
    copied = hasher.copy()
    copied.update(b"b")
    assert digest.matches(copied)
    assert not digest.matches(hasher)


def test_a_hasher_of_another_algorithm_never_matches():
    assert not Digest.of(b"", "sha512").matches(Digest.of(b"").hasher())


def test_digests_are_values_that_sort_as_they_print():
    digests = {Digest.of(bytes([n]), algorithm) for n in range(9) for algorithm in HEX_LENGTHS}
    assert all(str(one) < str(next_) for one, next_ in pairwise(sorted(digests)))
    assert digests == {Digest.parse(str(digest)) for digest in digests}
