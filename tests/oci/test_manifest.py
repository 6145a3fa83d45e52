"""Manifests: what they are, what they are made of."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    Descriptor,
    NotAManifest,
    Schema1Unsupported,
    descriptor_fields,
    identify,
    media_types,
    references,
)
from mirror.oci.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    MANIFEST_TYPES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
)

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
VAGUE = ["", "application/json", "application/octet-stream", "text/plain; charset=utf-8"]
DESCRIPTORS = st.builds(
    Descriptor, st.text(), st.binary().map(Digest.of), st.integers(0, 2**63 - 1)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
FIELDS = st.sampled_from(
    ["schemaVersion", "mediaType", "manifests", "config", "layers", "blobs", "size", "digest"]
)


def entry(descriptor: Descriptor) -> dict[str, Any]:
    return descriptor_fields(descriptor)


def encoded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def image(**fields: Any) -> bytes:
    return encoded(**{"schemaVersion": 2, "config": {}, "layers": []} | fields)


def index(**fields: Any) -> bytes:
    return encoded(**{"schemaVersion": 2, "manifests": []} | fields)


#: Manifests that do not state their media type.
SHAPES = {
    OCI_MANIFEST: image(),
    DOCKER_MANIFEST: image(),
    OCI_INDEX: index(),
    DOCKER_LIST: index(),
    OCI_ARTIFACT: encoded(schemaVersion=2, blobs=[]),
}


@pytest.mark.parametrize("media_type", MANIFEST_TYPES)
@pytest.mark.parametrize("vague", VAGUE)
def test_a_manifest_that_says_what_it_is_is_believed(media_type: str, vague: str):
    assert identify(encoded(schemaVersion=2, mediaType=media_type), vague) == media_type


@pytest.mark.parametrize("media_type", MANIFEST_TYPES)
def test_a_manifest_is_what_it_was_sent_as(media_type: str):
    body = SHAPES[media_type]
    assert identify(body, media_type) == media_type
    assert identify(body, f" {media_type.upper()} ; charset=utf-8") == media_type


@pytest.mark.parametrize("sent_as", MANIFEST_TYPES)
@pytest.mark.parametrize("media_type", MANIFEST_TYPES)
def test_a_media_type_that_the_fields_contradict_is_refused(media_type: str, sent_as: str):
    body = SHAPES[media_type]
    if body == SHAPES[sent_as]:
        assert media_types(body) == media_types(SHAPES[sent_as])
        return
    with pytest.raises(NotAManifest):
        identify(body, sent_as)
    with pytest.raises(NotAManifest):
        identify(encoded(**json.loads(body) | {"mediaType": sent_as}), "")


@pytest.mark.parametrize("vague", VAGUE)
def test_what_nobody_names_is_known_by_its_fields(vague: str):
    assert identify(image(), vague) == OCI_MANIFEST
    assert identify(index(), vague) == OCI_INDEX


def test_an_artifact_manifest_needs_no_schema_version():
    assert identify(encoded(mediaType=OCI_ARTIFACT), "") == OCI_ARTIFACT
    assert identify(encoded(blobs=[]), OCI_ARTIFACT) == OCI_ARTIFACT


def test_empty_fields_of_the_other_kind_do_no_harm():
    assert identify(index(config=None, layers=None), "") == OCI_INDEX
    assert identify(image(manifests=None, mediaType=None), DOCKER_MANIFEST) == DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", OCI_MANIFEST),
        (b"<!doctype html><title>Log in</title>", "text/html"),
        (b"<!doctype html><title>Log in</title>", OCI_MANIFEST),
        (b"\xff\xfe\x00", OCI_MANIFEST),
        (b"null", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (b'"manifest"', OCI_MANIFEST),
        (b"{}", ""),
        (b"{}", OCI_MANIFEST),
        (image() + b"}", OCI_MANIFEST),
        (image()[:-1], OCI_MANIFEST),
        (image(schemaVersion=3), OCI_MANIFEST),
        (image(schemaVersion="2"), OCI_MANIFEST),
        (image(schemaVersion=None), DOCKER_MANIFEST),
        (image(mediaType=OCI_MANIFEST), DOCKER_MANIFEST),
        (index(mediaType=DOCKER_LIST), OCI_INDEX),
        (image(mediaType="application/json"), ""),
        (image(mediaType=["application/json"]), ""),
        (image(mediaType=7), OCI_MANIFEST),
        (image(manifests=[]), OCI_MANIFEST),
        (index(layers=[{}]), OCI_INDEX),
        (index(config={}), ""),
        (encoded(schemaVersion=2), ""),
        (encoded(schemaVersion=2), OCI_MANIFEST),
        (encoded(schemaVersion=2, config={}), OCI_MANIFEST),
        (encoded(schemaVersion=2, layers=[]), OCI_MANIFEST),
        (image(fsLayers=[]), OCI_MANIFEST),
        (image(blobs=[]), OCI_MANIFEST),
        (index(blobs=[]), OCI_INDEX),
        (index(signatures=[]), OCI_INDEX),
        (encoded(schemaVersion=2, fsLayers=[]), OCI_MANIFEST),
        (encoded(schemaVersion=2, manifests={}), ""),
        (encoded(schemaVersion=2, config={}), ""),
        (encoded(errors=[{"code": "UNKNOWN"}]), "application/json"),
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes, content_type: str):
    with pytest.raises(NotAManifest):
        identify(body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (encoded(schemaVersion=1, fsLayers=[]), ""),
        (encoded(schemaVersion=1), DOCKER_SCHEMA1_SIGNED),
        (encoded(), DOCKER_SCHEMA1),
    ],
)
def test_schema_1_is_refused_by_name(body: bytes, content_type: str):
    with pytest.raises(Schema1Unsupported, match="schema 1"):
        identify(body, content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schemaVersion": 2, "mediaType": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"schemaVersion": 2, "layers": ' + b"[" * 700 + b"]" * 700 + b"}",
        b'{"schemaVersion": ' + b"9" * 100_000 + b"}",
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": 1e999, "mediaType": "\\ud800"}',
    ],
)
def test_hostile_json_is_refused_like_any_other(body: bytes):
    with pytest.raises(NotAManifest):
        identify(body, "")


@pytest.mark.long
@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, JSON | st.just(2)).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([*MANIFEST_TYPES, *VAGUE]) | st.text(),
)
def test_any_bytes_are_a_known_manifest_or_refused(body: bytes, content_type: str):
    try:
        assert identify(body, content_type) in MANIFEST_TYPES
        references(body)
    except NotAManifest:
        return


@given(DESCRIPTORS, st.lists(DESCRIPTORS, max_size=4))
def test_an_image_is_made_of_its_config_and_layers(config: Descriptor, layers: list[Descriptor]):
    body = image(config=entry(config), layers=[entry(layer) for layer in layers])
    assert references(body) == (config, *layers)


@given(st.lists(DESCRIPTORS, max_size=4))
def test_an_index_is_made_of_its_manifests(manifests: list[Descriptor]):
    assert references(index(manifests=[entry(one) for one in manifests])) == tuple(manifests)


def test_an_artifact_is_made_of_its_blobs():
    blob = Descriptor(LAYER, Digest.of(b"x"), 1)
    assert references(encoded(mediaType=OCI_ARTIFACT, blobs=[entry(blob)])) == (blob,)


def test_lists_that_go_left_null_are_empty():
    assert references(encoded(schemaVersion=2, config=None, layers=None)) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"size": "1"},
        {"size": None},
        {"size": 2**63},
        {"digest": None},
        {"digest": "sha256:../../etc/passwd"},
        {"digest": 7},
        {"mediaType": None},
        {"mediaType": {}},
    ],
)
def test_a_malformed_descriptor_is_refused(change: dict[str, Any]):
    bad = entry(Descriptor(LAYER, Digest.of(b""), 0)) | change
    with pytest.raises(NotAManifest):
        references(image(layers=[bad]))
    with pytest.raises(NotAManifest):
        references(index(manifests=[bad]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        encoded(layers={}),
        encoded(manifests="x"),
        encoded(config=[]),
        index(manifests=[1]),
    ],
)
def test_what_is_no_list_of_descriptors_is_refused(body: bytes):
    with pytest.raises(NotAManifest):
        references(body)


@pytest.mark.parametrize("value", [b"[],", b"{},", b"0,", b'{"a":[[]]},'])
def test_json_of_a_million_values_is_never_read(value: bytes):
    body = b'{"schemaVersion":2,"manifests":[' + value * 1_000_000 + b"{}]}"
    with pytest.raises(NotAManifest, match="values"):
        identify(body, OCI_INDEX)


def test_the_largest_index_that_a_registry_takes_is_read():
    entry = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1}
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    entries = [entry] * (4 * 1024 * 1024 // len(json.dumps(entry, separators=(",", ":"))))
    body = json.dumps({"schemaVersion": 2, "manifests": entries}, separators=(",", ":")).encode()
    assert identify(body, OCI_INDEX) == OCI_INDEX
    assert len(references(body)) == len(entries)
