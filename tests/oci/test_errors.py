"""Errors on the wire."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.errors import ErrorCode, OciError

# OCI distribution spec, "Error codes": code-1 to code-14.
SPEC = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
}


def test_every_code_of_the_spec_can_be_said():
    assert set(ErrorCode) >= SPEC


@given(st.sampled_from(ErrorCode), st.text())
def test_the_body_is_the_json_of_the_spec(code: ErrorCode, message: str):
    body = json.loads(OciError(code, message).body())
    assert body == {"errors": [{"code": code.value, "message": message}]}


def test_a_detail_is_told_where_there_is_one():
    body = json.loads(OciError(ErrorCode.DENIED, "no", detail={"key": "upstreams"}).body())
    assert body["errors"][0]["detail"] == {"key": "upstreams"}


def test_a_detail_without_a_json_form_is_told_as_text():
    digest = Digest.of(b"")
    body = json.loads(OciError(ErrorCode.BLOB_UNKNOWN, "no", detail=digest).body())
    assert body["errors"][0]["detail"] == str(digest)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NAME_INVALID", 400),
        ("DIGEST_INVALID", 400),
        ("UNAUTHORIZED", 401),
        ("DENIED", 403),
        ("BLOB_UNKNOWN", 404),
        ("MANIFEST_UNKNOWN", 404),
        ("NAME_UNKNOWN", 404),
        ("UNSUPPORTED", 405),
        ("RANGE_INVALID", 416),
        ("TOOMANYREQUESTS", 429),
        ("UNKNOWN", 500),
        ("UNAVAILABLE", 503),
    ],
)
def test_a_code_implies_its_status(code: str, status: int):
    assert OciError(ErrorCode(code), "").status == status


@pytest.mark.parametrize("code", ErrorCode)
def test_no_code_implies_success(code: ErrorCode):
    assert 400 <= OciError(code, "").status <= 599


def test_the_status_can_be_chosen_and_headers_added():
    error = OciError(ErrorCode.UNKNOWN, "slow", status=504, headers={"Retry-After": "5"})
    assert (error.status, error.headers, str(error)) == (504, {"Retry-After": "5"}, "slow")


def test_an_error_has_no_headers_of_its_own():
    assert dict(OciError(ErrorCode.UNKNOWN, "").headers) == {}
