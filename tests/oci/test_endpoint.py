"""Request lines as typed requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.endpoint import (
    BlobEndpoint,
    Endpoint,
    ManifestEndpoint,
    Ping,
    ReferrersEndpoint,
    TagsEndpoint,
    UploadEndpoint,
    parse_endpoint,
    parse_passed,
)
from mirror.oci.errors import OciError
from mirror.oci.reference import Tag

DIGEST = Digest.of(b"content")
HOSTS = ["", "mcr.microsoft.com", "localhost:5001", "registry", "127.0.0.1:5000", "GHCR.io"]
# Words that mean something elsewhere in a path are names like any other.
PARTS = st.sampled_from(
    ["v2", "manifests", "blobs", "tags", "list", "referrers", "a", "b-c", "d.e"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
DIGESTS = st.binary().map(Digest.of)
PREFIXES = st.sampled_from(HOSTS)
ENDPOINTS = st.one_of(
    st.builds(Ping, PREFIXES),
    st.builds(ManifestEndpoint, PREFIXES, NAMES, st.just(Tag("v1.0_a-b")) | DIGESTS),
    st.builds(BlobEndpoint, PREFIXES, NAMES, DIGESTS),
    st.builds(TagsEndpoint, PREFIXES, NAMES),
    st.builds(ReferrersEndpoint, PREFIXES, NAMES, DIGESTS),
)


def written(endpoint: Endpoint) -> str:
    """The path that asks for an endpoint."""
    root = f"/{endpoint.prefix}/v2/" if endpoint.prefix else "/v2/"
    match endpoint:
        case ManifestEndpoint():
            return f"{root}{endpoint.name}/manifests/{endpoint.reference}"
        case BlobEndpoint():
            return f"{root}{endpoint.name}/blobs/{endpoint.digest}"
        case ReferrersEndpoint():
            return f"{root}{endpoint.name}/referrers/{endpoint.digest}"
        case TagsEndpoint():
            return f"{root}{endpoint.name}/tags/list"
        case _:
            return root


def refusal(path: str, method: str = "GET") -> tuple[int, str]:
    with pytest.raises(OciError) as refused:
        parse_endpoint(method, path)
    assert str(refused.value)
    return refused.value.status, refused.value.code


@given(ENDPOINTS, st.sampled_from(["GET", "HEAD"]))
def test_every_endpoint_is_read_from_its_path(endpoint: Endpoint, method: str):
    assert parse_endpoint(method, written(endpoint)) == endpoint


@given(ENDPOINTS, st.sampled_from(["%3a", "%3A"]))
def test_an_escaped_colon_is_a_colon(endpoint: Endpoint, escape: str):
    assert parse_endpoint("GET", written(endpoint).replace(":", escape)) == endpoint


@pytest.mark.parametrize(
    ("path", "prefix"),
    [("/v2", ""), ("/v2/", ""), ("/ghcr.io/v2", "ghcr.io"), ("/localhost:5/v2/", "localhost:5")],
)
def test_a_ping_needs_no_final_slash(path: str, prefix: str):
    assert parse_endpoint("GET", path) == Ping(prefix)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        (Ping(""), "ping"),
        (ManifestEndpoint("", "a", DIGEST), "manifest"),
        (BlobEndpoint("", "a", DIGEST), "blob"),
        (TagsEndpoint("", "a"), "tags"),
        (ReferrersEndpoint("", "a", DIGEST), "referrers"),
    ],
)
def test_the_kinds_are_the_words_of_the_metrics(endpoint: Endpoint, kind: str):
    assert parse_endpoint("GET", written(endpoint)).kind == kind


@pytest.mark.parametrize(
    "name", ["mcr.microsoft.com/dotnet/sdk", "localhost:5001/x", "localhost/x"]
)
def test_a_name_may_begin_with_a_registry(name: str):
    assert parse_endpoint("GET", f"/v2/{name}/tags/list") == TagsEndpoint("", name)


def test_a_repository_called_v2_is_no_prefix():
    assert parse_endpoint("GET", "/v2/v2/a/tags/list") == TagsEndpoint("", "v2/a")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "X" * 999])
@pytest.mark.parametrize("path", ["/v2/", "/v2/a/blobs/uploads/", "/elsewhere", "/v2/%00"])
def test_whoever_wants_to_write_is_told_what_is_allowed(method: str, path: str):
    with pytest.raises(OciError) as refused:
        parse_endpoint(method, path)
    error = refused.value
    assert (error.status, error.code) == (405, "UNSUPPORTED")
    assert error.headers["Allow"] == "GET, HEAD"
    assert "push to the registry" in error.message
    assert len(error.message) < 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/A/tags/list",
        "/v2/a_/tags/list",
        "/v2//tags/list",
        "/v2//a/tags/list",
        "/v2/a//b/tags/list",
        "/v2/a/tags/list/",
        "/v2//",
        "/v2/../a/tags/list",
        "/v2/a/../../etc/manifests/latest",
        "/v2/a/./manifests/latest",
        "/v2/a/manifests/..",
        "/v2/a/manifests/",
        "/v2/a%2fb/manifests/latest",
        "/v2/a/manifests%2Flatest",
        "/v2/%2e%2e/manifests/latest",
        "/v2/a/manifests/%2e%2e",
        "/v2/a/blobs/sha256%253A" + DIGEST.hex,
        "/v2/a%/tags/list",
        "/v2/a%00/tags/list",
        "/v2/a\0/tags/list",
        "/v2/a\n/tags/list",
        "/v2/a b/tags/list",
        "/v2/\u00e4/tags/list",
        "/v2/\udcff/tags/list",
        "/%2e%2e/v2/a/tags/list",
        "/../v2/a/tags/list",
        "/-x/v2/a/tags/list",
        "/x:y/v2/a/tags/list",
        "/x:123456/v2/",
        "/" + "a." * 128 + "a/v2/",
        "/v2/manifests/latest",
        "/v2/tags/list",
        "/v2/mcr..com/a/tags/list",
        "/v2/x:y/a/tags/list",
        "/v2/localhost:5000/tags/list",
        "/v2/mcr.microsoft.com/A/tags/list",
        "/v2/" + "a" * 256 + "/tags/list",
    ],
)
def test_a_malformed_name_is_a_bad_request(path: str):
    assert refusal(path) == (400, "NAME_INVALID")


@pytest.mark.parametrize("kind", ["blobs", "referrers", "manifests"])
@pytest.mark.parametrize(
    "digest", [f"md5:{DIGEST.hex}", "sha256:", str(DIGEST).upper(), f"{DIGEST}0"]
)
def test_a_malformed_digest_is_a_bad_request(kind: str, digest: str):
    assert refusal(f"/v2/a/{kind}/{digest}") == (400, "DIGEST_INVALID")


def test_a_tag_is_no_name_for_a_blob():
    assert refusal("/v2/a/blobs/latest") == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("tag", [".a", "-a", "a+b", "a@b", "a" * 129])
def test_a_malformed_tag_is_one_that_nobody_has(tag: str):
    assert refusal(f"/v2/a/manifests/{tag}") == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/a",
        "/v2/a/b",
        "/v2/a/tags/last",
        "/v2/a/blobs/uploads/5",
        "/v2/a/x/y",
        "/v2/a/_catalog",
        "/v2/" + "a" * 8192,
    ],
)
def test_what_the_spec_does_not_know_is_not_found(path: str):
    assert refusal(path) == (404, "UNSUPPORTED")


@pytest.mark.parametrize(
    "path", ["/v2/_catalog", "/v2/docker.io/_catalog", "/docker.io/v2/_catalog"]
)
def test_the_catalogue_is_not_kept_here(path: str):
    with pytest.raises(OciError, match="ask the registry itself") as refused:
        parse_endpoint("GET", path)
    assert (refused.value.status, refused.value.code) == (404, "UNSUPPORTED")


@pytest.mark.parametrize(
    "path", ["", "/", "/v1/", "/v2x", "v2/", "/a/b/v2/", "//v2/", "/favicon.ico", "*"]
)
def test_what_is_not_below_v2_is_not_found(path: str):
    assert refusal(path) == (404, "NAME_UNKNOWN")


@pytest.mark.long
@given(
    st.text()
    | st.lists(
        PARTS | st.sampled_from(["", "..", "%2f", "%3A", "A", "\0", "x.y:5", str(DIGEST)]),
        max_size=7,
    ).map(lambda parts: "/" + "/".join(parts))
)
def test_any_path_is_an_endpoint_or_refused_in_the_words_of_the_spec(path: str):
    try:
        endpoint = parse_endpoint("GET", path)
    except OciError:
        return
    # What is accepted has one spelling, but for the escaped colon and the ping's last slash.
    spelled = path.replace("%3A", ":")
    assert written(endpoint) in {spelled, spelled + "/"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v2/a/blobs/uploads/", "a"),
        ("/v2/a/blobs/uploads", "a"),
        ("/v2/a/b/blobs/uploads/1-2_3.4~=:@+", "a/b"),
        ("/v2/a/blobs/upload/1", "a"),
        ("/v2/a/blobs/uploads/blobs/uploads", "a/blobs/uploads"),
        ("/v2/a/blobs/upload/uploads", "a"),
    ],
)
def test_an_upload_is_one_of_a_repository(path: str, name: str):
    assert parse_passed(path) == UploadEndpoint("", name)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/v2/blobs/uploads/",
            "/v2//blobs/uploads/",
            "/x/v2/a/blobs/uploads/",
            "/v2a/blobs/uploads/",
        ),
        *("/v2/a/blobs/uploads/..", "/v2/a/blobs/uploads/.", "/v2/a/blobs/uploads/x/y"),
        *("/v2/a/blobs/uploads/%2e", "/v2/A/blobs/uploads/", "/v2/../blobs/uploads/1"),
        *("/v2/a/blobs/uploads//", "/v2/a/Blobs/uploads/1", "/v2/a/blobs/uploads/\n"),
        "/v2/docker.io:443/a/blobs/uploads/",
    ],
)
def test_what_has_another_spelling_is_no_upload(path: str):
    with pytest.raises(OciError):
        parse_passed(path)


@given(ENDPOINTS)
def test_what_is_pulled_is_passed_on_as_the_same(endpoint: Endpoint):
    assert parse_passed(written(endpoint)) == endpoint


def test_a_client_that_takes_this_port_for_that_of_the_proxy_is_told_so():
    with pytest.raises(OciError, match="this port is no proxy") as refused:
        parse_endpoint("CONNECT", "registry-1.docker.io:443")
    assert (refused.value.status, refused.value.code) == (405, "UNSUPPORTED")
