"""Parses request lines to the endpoints of the registry API.

Knows the paths of the OCI distribution spec ("Endpoints").  Must not know which registries are
configured.  The parts of an endpoint are well-formed; all other code relies on that.  The raw path
is parsed, because decoding could turn two different paths into one.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.reference import (
    InvalidName,
    InvalidReference,
    Reference,
    parse_reference,
    parse_repository,
    split_registry,
)

_HOST: Final = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?",
    re.ASCII,
)
#: Says what is wrong to a client that takes the port of the registry API for that of the proxy.
NOT_A_PROXY: Final = (
    "this port is no proxy: HTTP_PROXY and HTTPS_PROXY take the address in [proxy] listen"
)
_MAX_HOST_LENGTH: Final = 255
_COLON: Final = re.compile("%3a", re.IGNORECASE)
_ROOT: Final = re.compile(r"(?:/(?P<prefix>(?!v2/)[^/]+))?/v2(?:/(?P<rest>.*))?")
_STRANGE: Final = re.compile(r"[^!-$&-~]")  # "%", and all but visible ASCII
_NO_NAMES: Final = frozenset({"", ".", ".."})
_READING: Final = frozenset({"GET", "HEAD"})
# The registry chooses the last part, the name of an upload; GitHub's registry writes "upload".
_UPLOAD: Final = re.compile(r"/blobs/uploads?(?:/(?!\.{1,2}\Z)[A-Za-z0-9._~:=@+-]*)?\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ping:
    """``/v2/``: clients ask whether this is a registry."""

    kind: ClassVar[str] = "ping"
    prefix: str


@dataclass(frozen=True, slots=True)
class ManifestEndpoint:
    """``/v2/<name>/manifests/<reference>``."""

    kind: ClassVar[str] = "manifest"
    prefix: str
    name: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class BlobEndpoint:
    """``/v2/<name>/blobs/<digest>``."""

    kind: ClassVar[str] = "blob"
    prefix: str
    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class TagsEndpoint:
    """``/v2/<name>/tags/list``."""

    kind: ClassVar[str] = "tags"
    prefix: str
    name: str


@dataclass(frozen=True, slots=True)
class ReferrersEndpoint:
    """``/v2/<name>/referrers/<digest>``."""

    kind: ClassVar[str] = "referrers"
    prefix: str
    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class UploadEndpoint:
    """``/v2/<name>/blobs/uploads/`` and uploads below it (end-4a to end-6, end-11, end-13)."""

    kind: ClassVar[str] = "upload"
    prefix: str
    name: str


Content = ManifestEndpoint | BlobEndpoint | TagsEndpoint | ReferrersEndpoint
Endpoint = Ping | Content


def parse_endpoint(method: str, raw_path: str) -> Endpoint:
    """Parse a request line; ``raw_path`` is the path as on the wire, without the query.

    Raises:
        OciError: the request does not read from the registry API, or is malformed.
    """
    if method == "CONNECT":
        raise OciError(ErrorCode.UNSUPPORTED, NOT_A_PROXY, headers={"Allow": "GET, HEAD"})
    if method not in _READING:
        raise OciError(
            ErrorCode.UNSUPPORTED,
            f"{method[:16]} is refused: a mirror only reads; push to the registry itself",
            headers={"Allow": "GET, HEAD"},
        )
    path = _COLON.sub(":", raw_path)
    if _STRANGE.search(path):
        raise OciError(ErrorCode.NAME_INVALID, "a path is ASCII without escapes other than %3A")
    matched = _ROOT.fullmatch(path)
    if matched is None:
        text = "nothing is here: the registry API is below /v2/, the mirror's own below /api/v1/"
        raise OciError(ErrorCode.NAME_UNKNOWN, text)
    prefix, rest = matched["prefix"] or "", matched["rest"] or ""
    if prefix and not is_host(prefix):
        raise OciError(ErrorCode.NAME_INVALID, "the path before /v2/ is not the name of a registry")
    return _parse_content(prefix, rest) if rest else Ping(prefix)


def parse_passed(raw_path: str) -> Endpoint | UploadEndpoint:
    """Parse the path of a request with any method to a registry, pulls and pushes.

    Raises:
        OciError: the path is not an endpoint of the registry API, or is malformed.
    """
    matched = _UPLOAD.search(raw_path)
    if matched is None or not raw_path.startswith("/v2/"):
        return parse_endpoint("GET", raw_path)
    try:
        return UploadEndpoint("", parse_repository(raw_path[len("/v2/") : matched.start()]))
    except InvalidName as error:
        raise OciError(ErrorCode.NAME_INVALID, str(error)) from error


def plain_path(raw_path: str) -> str:
    """Return the canonical spelling of a path that :func:`parse_endpoint` accepted."""
    return _COLON.sub(":", raw_path)


def _parse_content(prefix: str, rest: str) -> Content:
    if not _NO_NAMES.isdisjoint(rest.split("/")):
        raise OciError(ErrorCode.NAME_INVALID, "a path has no empty parts, no '.' and no '..'")
    # From the right: a repository may have parts called manifests, blobs or tags.
    head, _, last = rest.rpartition("/")
    name, _, verb = head.rpartition("/")
    try:
        return _content(prefix, name, verb, last)
    except InvalidName as error:
        raise OciError(ErrorCode.NAME_INVALID, str(error)) from error
    except InvalidDigest as error:
        raise OciError(ErrorCode.DIGEST_INVALID, str(error)) from error
    except InvalidReference as error:
        # The spec's conformance tests expect 404 for an invalid tag: it cannot exist.
        code = ErrorCode.DIGEST_INVALID if ":" in last else ErrorCode.MANIFEST_UNKNOWN
        raise OciError(code, str(error)) from error


def _content(prefix: str, name: str, verb: str, last: str) -> Content:
    match verb, last:
        case "manifests", _:
            return ManifestEndpoint(prefix, _parse_name(name), parse_reference(last))
        case "blobs", _:
            return BlobEndpoint(prefix, _parse_name(name), Digest.parse(last))
        case "referrers", _:
            return ReferrersEndpoint(prefix, _parse_name(name), Digest.parse(last))
        case "tags", "list":
            return TagsEndpoint(prefix, _parse_name(name))
        case _, "_catalog":
            offer = "a mirror does not know what a registry holds; ask the registry itself"
        case _:
            offer = "below /v2/ a mirror serves manifests, blobs, tags/list and referrers only"
    raise OciError(ErrorCode.UNSUPPORTED, offer, status=404)


def _parse_name(name: str) -> str:
    registry, repository = split_registry(name)
    if registry is not None and not is_host(registry):
        raise InvalidName(f"{registry[:80]!r} is not the name of a registry")
    parse_repository(repository)
    return name


def is_host(text: str) -> bool:
    """Whether a text can name a registry: a host, with or without a port."""
    return len(text) <= _MAX_HOST_LENGTH and _HOST.fullmatch(text) is not None
