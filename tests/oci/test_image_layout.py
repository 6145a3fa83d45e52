"""The names and the index of an OCI image layout."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.image_layout import (
    CONTAINERD_NAME,
    INDEX_FILE,
    MARKER,
    MARKER_FILE,
    REF_NAME,
    NotALayout,
    UnsafeName,
    blob_file,
    check_marker,
    merged_index,
    parse_file,
    parse_index,
    written_index,
)
from mirror.oci.manifest import Descriptor

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
DIGEST = HEX.map(lambda text: Digest("sha256", text))
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DESCRIPTOR = st.builds(Descriptor, st.just(OCI_MANIFEST), DIGEST, st.integers(0, 1 << 40))
NAME = st.from_regex(r"r\.example\.com/[a-z]{1,8}:[a-z0-9]{1,8}", fullmatch=True)
A = Digest("sha256", "a" * 64)


@given(DIGEST)
def test_a_blob_is_found_by_the_name_it_is_given(digest):
    assert parse_file(blob_file(digest)) == digest
    assert parse_file(f"./{blob_file(digest)}") == digest


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/passwd", "blobs/../../x", "blobs/sha256/..", f"/{blob_file(A)}", "a\\..\\b",
        f"../{blob_file(A)}", "./../oci-layout", "oci-layout\0",
    ],
)  # fmt: skip
def test_a_name_that_leads_out_of_it_is_refused(name):
    with pytest.raises(UnsafeName, match="leads out of it"):
        parse_file(name)


@pytest.mark.parametrize(
    "name", ["", ".", "manifest.json", "blobs", "blobs/sha256/", "blobs/md5/00", "x/oci-layout"]
)
def test_what_else_is_in_it_is_of_no_interest(name):
    assert parse_file(name) is None


@given(st.text(max_size=120))
def test_any_name_is_refused_or_known_or_of_no_interest(name):
    try:
        what = parse_file(name)
    except UnsafeName:
        return
    if isinstance(what, Digest):
        assert name.removeprefix("./") == blob_file(what)
    else:
        assert what in {None, MARKER_FILE, INDEX_FILE}


@pytest.mark.long
@given(st.lists(st.tuples(DESCRIPTOR, NAME), max_size=4))
def test_an_index_is_read_as_it_was_written(roots):
    found = parse_index(written_index(roots))
    assert [(root.descriptor, str(root.image)) for root in found] == roots


@pytest.mark.long
@given(
    st.lists(st.tuples(DESCRIPTOR, NAME), max_size=3, unique_by=lambda root: root[1]),
    st.lists(st.tuples(DESCRIPTOR, NAME), max_size=3, unique_by=lambda root: root[1]),
)
def test_what_is_added_takes_the_place_of_what_has_its_name(before, added):
    merged = parse_index(merged_index(written_index(before), added))
    expected = {name: descriptor for descriptor, name in before + added}
    assert {str(root.image): root.descriptor for root in merged} == expected
    assert len(merged) == len(expected)


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({CONTAINERD_NAME: "docker.io/library/a:1", REF_NAME: "1"}, "docker.io/library/a:1"),
        ({REF_NAME: "docker.io/library/a:1"}, "docker.io/library/a:1"),
        ({REF_NAME: "a:1"}, "a:1"),
        ({REF_NAME: "latest"}, "None"),
        ({REF_NAME: "not a name/of:anything"}, "None"),
        ({CONTAINERD_NAME: "Nonsense", REF_NAME: "org/a:1"}, "org/a:1"),
        ({}, "None"),
        ("nonsense", "None"),
    ],
)
def test_the_name_is_where_docker_containerd_and_skopeo_write_it(annotations, name):
    entry = {"mediaType": OCI_MANIFEST, "digest": str(A), "size": 1, "annotations": annotations}
    (root,) = parse_index(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    assert str(root.image) == name


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"manifests": 1}', b'{"manifests": [{}]}'])
def test_an_index_that_is_none_is_refused(data):
    with pytest.raises(NotALayout, match=r"index\.json: "):
        parse_index(data)


@pytest.mark.slow
@given(st.binary(max_size=200) | st.recursive(st.text(max_size=5), st.lists).map(json.dumps))
def test_any_bytes_are_an_index_or_refused(data):
    data = data if isinstance(data, bytes) else data.encode()
    for parse in (parse_index, check_marker, lambda found: merged_index(found, [])):
        with contextlib.suppress(NotALayout):
            parse(data)


def test_a_layout_of_another_version_is_refused():
    check_marker(MARKER)
    with pytest.raises(NotALayout, match=r"version '2\.0\.0'"):
        check_marker(b'{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(NotALayout, match="does not say"):
        check_marker(b'{"version": 7}')
