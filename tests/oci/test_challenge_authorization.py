"""User and password of an Authorization field (RFC 7617)."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.challenge import parse_basic


@given(st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"])), st.text())
def test_what_was_encoded_is_read_back(user: str, password: str):
    encoded = base64.b64encode(f"{user}:{password}".encode(errors="ignore")).decode()
    password = password.encode(errors="ignore").decode()
    for scheme in ("Basic", "basic", "BASIC"):
        assert parse_basic(f"{scheme} {encoded}") == (user, password)


@given(st.text())
def test_anything_else_is_read_or_is_nothing(text: str):
    for field in (text, f"Basic {text}"):
        assert parse_basic(field) is None or isinstance(parse_basic(field), tuple)


@pytest.mark.parametrize("field", ["", "Basic", "Basic ", "Basic bm9jb2xvbg==", "Bearer bTp4"])
def test_what_holds_no_pair_is_nothing(field: str):
    assert parse_basic(field) is None
