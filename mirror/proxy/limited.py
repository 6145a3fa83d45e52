"""The requests that are passed on to a registry with ``allow`` or ``deny`` rules.

A request is passed on if it is a plainly spelled endpoint of the registry API for an allowed
repository, or if it requests a token.  Everything else is refused: the registry may understand a
path that the mirror does not.
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from mirror.oci.endpoint import Ping, UploadEndpoint, parse_passed, plain_path
from mirror.oci.errors import ErrorCode, OciError

_READING: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = _READING | {"POST", "PUT", "PATCH", "DELETE"}
#: Usual paths of token services; other paths are found through the registry's challenge.
TOKEN_PATHS: Final = frozenset(
    {
        *("/token", "/token/", "/auth", "/auth/token", "/v2/auth", "/v2/token", "/service/token"),
        *("/oauth2/token", "/oauth2/exchange", "/oauth/token", "/jwt/auth", "/proxy_auth"),
    }
)
TOKEN_METHODS: Final = frozenset({"GET", "POST"})
#: Uploads to Google's Artifact Registry; content under this path can be written, but not read.
_GOOGLE_UPLOADS: Final = "/artifacts-uploads/"
_UPLOADING: Final = frozenset({"PUT", "PATCH", "DELETE"})
#: Fields that make some servers and reverse proxies use another path, host or method.
REWRITING: Final = frozenset(
    {
        *("x-original-url", "x-rewrite-url", "x-original-uri", "x-forwarded-uri"),
        *("x-forwarded-prefix", "x-forwarded-path", "x-forwarded-host", "x-host", "forwarded"),
        *("x-http-method", "x-http-method-override", "x-method-override"),
    }
)


def is_plain(path: str) -> bool:
    """Whether a path has only one spelling: no escapes, no empty parts, no ``.`` and ``..``."""
    parts = path.removesuffix("/").split("/")[1:]
    usual = all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return path.isascii() and usual


def checked_path(method: str, path: str, query: str, permit: Callable[[str], object]) -> str | None:
    """Return the path to pass on; None if the request is not part of the registry API.

    ``permit`` raises an error if a repository is not allowed; the error is not caught here.

    Raises:
        OciError: the method is not part of the API, or a mount does not name its source.
    """
    if method not in _METHODS:
        text = f"{method[:16]} is not a method of the registry API"
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
    """Return the error for a request that is not passed on."""
    return OciError(
        ErrorCode.DENIED,
        f'allow and deny of [upstreams."{upstream}"] apply: the mirror passes on only requests for '
        "tokens, and requests of the registry API to allowed repositories",
        status=403,
    )


def _check_mount(query: str, permit: Callable[[str], object]) -> None:
    """Check the source of a blob mount (end-11): the registry would read the blob from there."""
    # Older registries take ";" for "&" (as Go did before 1.17).
    fields = parse_qsl(query.replace(";", "&"), keep_blank_values=True)
    sources = [value for name, value in fields if name.lower() == "from"]
    if not sources and any(name.lower() == "mount" for name, _ in fields):
        text = "a mount must name its source repository (from): else the registry may use any"
        raise OciError(ErrorCode.DENIED, text, status=403)
    for source in sources:
        permit(source)
