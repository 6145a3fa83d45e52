"""Header fields and error bodies of responses.  Pure functions, no I/O."""

import math
from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import web

from mirror.oci.digest import Digest
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.reference import InvalidName
from mirror.policy.rules import PolicyError
from mirror.pull.outcome import NotLeadingError, Outcome, OverloadedError
from mirror.shares import FullError
from mirror.upstream.errors import (
    DeniedError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    RejectedError,
    TimedOutError,
    UpstreamError,
)
from mirror.upstream.routing import ForbiddenError, UnknownRegistryError

#: Fields of every response that the mirror makes.  Content is untrusted: a browser must neither
#: execute it nor guess its type.
COMMON: Mapping[str, str] = MappingProxyType(
    {
        "Server": "mirror",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    }
)
_NONE: Mapping[str, str] = MappingProxyType({})
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0", **COMMON}

_NOT_FOUND = {
    "manifest": ErrorCode.MANIFEST_UNKNOWN,
    "blob": ErrorCode.BLOB_UNKNOWN,
    # oras-go looks for the tag of the referrers after any code but NAME_UNKNOWN.
    "referrers": ErrorCode.UNSUPPORTED,
}

_REJECTED = {400: ErrorCode.UNSUPPORTED, 413: ErrorCode.SIZE_INVALID}

_CACHE_STATUS = {
    Outcome.HIT: "mirror; hit",
    Outcome.MISS: "mirror; fwd=miss",
    Outcome.COALESCED: "mirror; fwd=miss; collapsed",
    Outcome.REVALIDATED: "mirror; fwd=stale; detail=revalidated",
    Outcome.STALE: "mirror; fwd=stale",
    Outcome.NEGATIVE: "mirror; fwd=miss; detail=negative",
}


def cache_status(outcome: Outcome, *, stored: bool = False, detail: str = "") -> str:
    """The value of the Cache-Status field (RFC 9211)."""
    status = _CACHE_STATUS[outcome]
    if stored and outcome is Outcome.MISS:
        status += "; stored"
    return f"{status}; detail={detail}" if detail else status


def digest_fields(digest: Digest) -> dict[str, str]:
    """Docker-Content-Digest and ETag for content with this digest."""
    return {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}


def not_modified(request: web.BaseRequest, digest: Digest) -> bool:
    """Whether If-None-Match names this content (RFC 9110, 13.1.2).

    A bare digest counts too, as it does for Docker's registry: scripts send what
    Docker-Content-Digest says.
    """
    matches = ",".join(request.headers.getall("If-None-Match", []))
    tags = {tag.strip().removeprefix("W/") for tag in matches.split(",")}
    return not tags.isdisjoint({"*", f'"{digest}"', str(digest)})


def error_of(error: Exception, kind: str) -> OciError:
    """Translate an exception into the spec's error; the message is for people.

    ``kind`` is the kind of the request; it selects the code of a 404.
    """
    if isinstance(error, OciError):
        return error
    if isinstance(error, InvalidName | PolicyError):
        code = ErrorCode.NAME_INVALID
        if isinstance(error, PolicyError):
            code = ErrorCode.UNAVAILABLE if error.passing else ErrorCode.DENIED
        return OciError(code, str(error))
    if isinstance(error, UnknownRegistryError):
        return OciError(
            ErrorCode.DENIED,
            f"this mirror is not configured for {error.name}; "
            f'its operator allows it with [upstreams."{error.name}"] in the configuration',
        )
    if isinstance(error, ForbiddenError):
        return OciError(
            ErrorCode.DENIED,
            f"this mirror does not give out {error.repository}; its operator allows it with "
            f'allow and deny of [upstreams."{error.upstream}"] in the configuration',
        )
    if isinstance(error, UpstreamError | FullError):
        return _upstream_error(error, kind)
    return OciError(ErrorCode.UNKNOWN, "the mirror failed to answer; its log says why", status=500)


def _upstream_error(error: UpstreamError | FullError, kind: str) -> OciError:
    message = str(error)
    if isinstance(error, NotFoundError):
        return OciError(_NOT_FOUND.get(kind, ErrorCode.NAME_UNKNOWN), message, status=404)
    if isinstance(error, RefusedError):
        # No challenge: dockerd would answer it with its credentials for Docker Hub.
        denied = isinstance(error, DeniedError)
        return OciError(ErrorCode.DENIED if denied else ErrorCode.UNAUTHORIZED, message)
    if isinstance(error, RejectedError):
        return OciError(_rejected_code(error, kind), message, status=error.status)
    if isinstance(error, RateLimitedError):
        headers = _retry_after(error.retry_after)
        return OciError(ErrorCode.TOOMANYREQUESTS, message, status=429, headers=headers)
    if isinstance(error, OverloadedError | FullError):
        return overloaded(message, error.retry_after)
    status = {TimedOutError: 504, NotLeadingError: 421}.get(type(error), 502)
    return OciError(ErrorCode.UNAVAILABLE, message, status=status)


def _rejected_code(error: RejectedError, kind: str) -> ErrorCode:
    """The code of upstream's own error, or the code nearest to its status."""
    if error.code in ErrorCode.__members__.values():
        return ErrorCode(error.code)
    if error.status == 410:
        return _NOT_FOUND.get(kind, ErrorCode.NAME_UNKNOWN)
    return _REJECTED.get(error.status, ErrorCode.DENIED)


def overloaded(message: str, seconds: float) -> OciError:
    """A 503 error for an overloaded mirror, with ``seconds`` as Retry-After."""
    return OciError(ErrorCode.UNAVAILABLE, message, status=503, headers=_retry_after(seconds))


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def outcome_of(error: OciError) -> Outcome:
    """The outcome under which a request with this error is counted."""
    if error.status == 404:
        return Outcome.NEGATIVE
    return Outcome.DENIED if error.status in {401, 403} else Outcome.ERROR


def error_response(error: OciError) -> web.Response:
    """The response with the spec's error body (OCI distribution spec, error codes)."""
    headers = {**API_VERSION, **error.headers}
    if error.status == 404:
        headers["Cache-Status"] = cache_status(Outcome.NEGATIVE)
    return web.Response(
        status=error.status, body=error.body(), content_type="application/json", headers=headers
    )


def plain_response(status: int, message: str, headers: Mapping[str, str] = _NONE) -> web.Response:
    """An error response of the proxy port: one line of text; the connection is closed after it."""
    response = web.Response(status=status, text=f"{message}\n", headers={**COMMON, **headers})
    response.force_close()
    return response
