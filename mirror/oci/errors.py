"""Error answers of the registry API (OCI distribution spec, "Error codes").

Knows codes, their usual status and the JSON.  Must not know why a request failed.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ErrorCode(StrEnum):
    """The codes of the spec; the last three are additions of the distribution project."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    RANGE_INVALID = "RANGE_INVALID"
    UNAVAILABLE = "UNAVAILABLE"
    UNKNOWN = "UNKNOWN"


_STATUS: Final = {
    ErrorCode.BLOB_UNKNOWN: 404,
    ErrorCode.BLOB_UPLOAD_UNKNOWN: 404,
    ErrorCode.MANIFEST_BLOB_UNKNOWN: 404,
    ErrorCode.MANIFEST_UNKNOWN: 404,
    ErrorCode.NAME_UNKNOWN: 404,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.DENIED: 403,
    ErrorCode.UNSUPPORTED: 405,
    ErrorCode.TOOMANYREQUESTS: 429,
    ErrorCode.RANGE_INVALID: 416,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.UNKNOWN: 500,
}
_BAD_REQUEST: Final = 400
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def lookup_message(body: bytes) -> str | None:
    """Return the message of an error answer, None if the body is of another form."""
    try:
        return str(json.loads(body)["errors"][0]["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


class OciError(Exception):
    """An error answer: a code, a message for people, an HTTP status.

    The default ``status`` is the usual one of the code; ``headers`` are sent with the answer.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        status: int | None = None,
        detail: object = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        # It may quote bytes of a client that are no text, which neither JSON nor a database takes.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = _STATUS.get(code, _BAD_REQUEST) if status is None else status
        self.detail = detail
        self.headers = headers

    def body(self) -> bytes:
        """Return the JSON of the spec, with ``detail`` only if there is one."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        # default=str: an error answer must not fail because its detail has no JSON form.
        return json.dumps({"errors": [error]}, default=str).encode()
