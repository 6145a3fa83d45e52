"""Media types and the Accept field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.media_types import (
    ACCEPT_MANIFESTS,
    CURRENT_TYPES,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_TYPES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    accepts,
    narrow_accept,
)

PRETTYJWS = "application/vnd.docker.distribution.manifest.v1+prettyjws"
TYPES = st.sampled_from(MANIFEST_TYPES)


@pytest.mark.parametrize("accept", ["", " ", ",", " , "])
def test_who_says_nothing_accepts_everything(accept: str):
    assert accepts(accept, OCI_INDEX)
    assert narrow_accept(accept) == ""


@pytest.mark.parametrize(
    "accept",
    [
        OCI_INDEX,
        OCI_INDEX.upper(),
        f"{OCI_INDEX}; q=0.1",
        f"{OCI_INDEX};charset=utf-8;Q=1.0",
        f"text/html , {OCI_INDEX}",
        "*/*",
        "application/*",
        "*/*;q=0.001",
        f"{OCI_INDEX}, */*;q=0",
        f"*/*;q=0, {OCI_INDEX}",
        f"{OCI_INDEX};q=0, {OCI_INDEX}",
        f"{OCI_INDEX}, {OCI_INDEX};q=0",
        f"{OCI_INDEX};q=much",
    ],
)
def test_these_accept_an_index(accept: str):
    assert accepts(accept, OCI_INDEX)


@pytest.mark.parametrize(
    "accept",
    [
        OCI_MANIFEST,
        "text/*",
        "application/",
        "*",
        "application/vnd.oci.*",
        f"{OCI_INDEX};q=0",
        f"{OCI_INDEX}; Q = 0.000",
        f"*/*, {OCI_INDEX};q=0",
        f"{OCI_INDEX};q=0, application/*",
        f"{OCI_INDEX};q=0.0, */*;q=1",
        "application/*;q=0, */*",
    ],
)
def test_these_do_not_accept_an_index(accept: str):
    assert not accepts(accept, OCI_INDEX)


def test_media_types_are_compared_whatever_their_case():
    assert accepts(OCI_INDEX, OCI_INDEX.upper())


def test_upstream_is_asked_for_every_real_manifest_and_nothing_it_would_convert_to():
    asked = ACCEPT_MANIFESTS.split(", ")
    assert set(asked) == {DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, OCI_ARTIFACT}
    assert not accepts(ACCEPT_MANIFESTS, PRETTYJWS)


@given(st.permutations(CURRENT_TYPES), st.lists(st.sampled_from([PRETTYJWS, "*/*", OCI_ARTIFACT])))
def test_a_modern_client_needs_no_narrowing(types: list[str], more: list[str]):
    assert narrow_accept(", ".join(types + more)) == ""


@given(st.lists(TYPES, min_size=1, unique=True))
def test_a_picky_client_is_reduced_to_what_it_takes_in_one_order(types: list[str]):
    narrow = narrow_accept(",".join([*types, "text/html", PRETTYJWS]))
    if set(types) >= set(CURRENT_TYPES):
        assert narrow == ""
    else:
        assert narrow.split(", ") == [name for name in MANIFEST_TYPES if name in types]


def test_a_client_that_refuses_one_type_is_picky():
    assert DOCKER_LIST not in narrow_accept(f"*/*, {DOCKER_LIST};q=0").split(", ")


@pytest.mark.parametrize("accept", ["application/json", PRETTYJWS, "text/*", "*/*;q=0"])
def test_a_client_that_takes_no_manifest_at_all_is_given_what_there_is(accept: str):
    assert narrow_accept(accept) == ""


@given(st.text(",;*/= q01.abc", max_size=40) | st.text() | st.lists(TYPES).map(";q=0,".join))
def test_narrowing_any_header_is_idempotent_and_never_widens(accept: str):
    narrow = narrow_accept(accept)
    assert narrow_accept(narrow) == narrow
    if narrow:
        assert all(accepts(accept, name) for name in narrow.split(", "))


@pytest.mark.parametrize("count", [63, 64, 10_000])
def test_an_accept_field_of_very_many_patterns_is_disregarded(count: int):
    accept = ", ".join([OCI_MANIFEST, *(f"a/{number}" for number in range(count))])
    assert accepts(accept, OCI_INDEX) == (count > 63)
    assert narrow_accept(accept) == ("" if count > 63 else OCI_MANIFEST)


def test_a_very_long_accept_field_is_disregarded():
    assert narrow_accept(f"{OCI_MANIFEST};{'x' * 3000}") == OCI_MANIFEST
    assert narrow_accept(f"{OCI_MANIFEST};{'x' * 5000}") == ""
