"""What is passed on to a registry of which ``allow`` or ``deny`` keep a repository back.

A request is passed on if it is an endpoint of the registry API, in its plain spelling, of a
repository that may be had, or if it asks for a token.  All else is refused: a path that is not
understood here may be understood by the registry.
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from mirror.oci.endpoint import Ping, UploadEndpoint, parse_passed, plain_path
from mirror.oci.errors import ErrorCode, OciError

_READING: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = _READING | {"POST", "PUT", "PATCH", "DELETE"}
#: Where registries have their token services; others are known by the registry's challenge.
TOKEN_PATHS: Final = frozenset(
    {
        *("/token", "/token/", "/auth", "/auth/token", "/v2/auth", "/v2/token", "/service/token"),
        *("/oauth2/token", "/oauth2/exchange", "/oauth/token", "/jwt/auth", "/proxy_auth"),
    }
)
TOKEN_METHODS: Final = frozenset({"GET", "POST"})
#: Uploads to Google's Artifact Registry; what is there can be written, and not read.
_GOOGLE_UPLOADS: Final = "/artifacts-uploads/"
_UPLOADING: Final = frozenset({"PUT", "PATCH", "DELETE"})
#: Fields by which servers and the proxies before them take another path, host or method.
REWRITING: Final = frozenset(
    {
        *("x-original-url", "x-rewrite-url", "x-original-uri", "x-forwarded-uri"),
        *("x-forwarded-prefix", "x-forwarded-path", "x-forwarded-host", "x-host", "forwarded"),
        *("x-http-method", "x-http-method-override", "x-method-override"),
    }
)


def is_plain(path: str) -> bool:
    """Whether a path has one spelling alone: no escapes, no empty parts, no ``.`` and ``..``."""
    parts = path.removesuffix("/").split("/")[1:]
    usual = all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return path.isascii() and usual


def checked_path(method: str, path: str, query: str, permit: Callable[[str], object]) -> str | None:
    """The path of a request as it is to be passed on, None where it is none of the registry API.

    ``permit`` raises where a repository may not be had.

    Raises:
        OciError: the method, or the repository that a blob is mounted from, is not one of the API.
    """
    if method not in _METHODS:
        text = f"{method[:16]} is no method of the registry API"
        raise OciError(ErrorCode.UNSUPPORTED, text, headers={"Allow": ", ".join(sorted(_METHODS))})
    if path.startswith(_GOOGLE_UPLOADS) and method in _UPLOADING and is_plain(path):
        return path
    try:
        endpoint = parse_passed(path)
    except OciError:
        return None
    if endpoint.prefix:
        return None
    if isinstance(endpoint, Ping):
        return path if method in _READING else None
    permit(endpoint.name)
    if isinstance(endpoint, UploadEndpoint):
        _check_mount(query, permit)
    return plain_path(path)


def refusal(upstream: str) -> OciError:
    """Why a request is not passed on."""
    return OciError(
        ErrorCode.DENIED,
        f'allow and deny of [upstreams."{upstream}"] hold: only requests of the registry API to '
        "repositories that they let out, and for tokens, are passed on",
        status=403,
    )


def _check_mount(query: str, permit: Callable[[str], object]) -> None:
    """Check where a blob is mounted from (end-11): a registry would read it there."""
    # Older registries take ";" for "&" (as Go did before 1.17).
    fields = parse_qsl(query.replace(";", "&"), keep_blank_values=True)
    sources = [value for name, value in fields if name.lower() == "from"]
    if not sources and any(name.lower() == "mount" for name, _ in fields):
        text = "name the repository that the blob is mounted from: the registry would take any"
        raise OciError(ErrorCode.DENIED, text, status=403)
    for source in sources:
        permit(source)
