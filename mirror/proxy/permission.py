"""Which servers a client names and may reach, and which requests pass to them.

A server is ``host:port``, as after CONNECT: the authority-form (RFC 9112, 3.2.3; RFC 9110, 9.3.6)
or the absolute-form (RFC 9112, 3.2.2).  A parsed destination is normalized: one host in its only
spelling, and a port.  The rules compare these texts and rely on that; they resolve no name.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from mirror.http.forwarded import lookup_address
from mirror.oci.endpoint import Ping, UploadEndpoint, parse_passed, plain_path
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.image_glob import compile_glob, is_glob
from mirror.upstream.addresses import is_local, is_private


class TunnelError(Exception):
    """A CONNECT fails: the HTTP status of the answer, and one line that says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::([0-9]{1,5}))?", re.ASCII)
_NUMBERS: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.ASCII)
_MOST_NAME: Final = 253  # characters (RFC 1035, 2.3.4)
_MOST_PORT: Final = 65535
_SCHEME: Final = "http://"
_SHOWN: Final = 80


class InvalidDestination(ValueError):  # noqa: N818  # named like InvalidName
    """The text does not name a server; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host, in lower case and without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(text: str, port: int | None = None) -> Destination:
    """Parse the target of a CONNECT, or a Host field (RFC 9110, 7.2); ``port`` is the default.

    Raises:
        InvalidDestination: the text is not ``host:port``; ``host`` alone needs a default.
    """
    matched = _AUTHORITY.fullmatch(text)
    if matched is None:
        raise InvalidDestination(f"{text[:_SHOWN]!r} is not a server (host:port)")
    port = port if matched[2] is None else int(matched[2])
    if port is None:
        raise InvalidDestination(f"{text[:_SHOWN]!r} lacks the port (host:port)")
    if not 0 < port <= _MOST_PORT:
        raise InvalidDestination(f"{text[:_SHOWN]!r} has no port between 1 and {_MOST_PORT}")
    return Destination(_host(matched[1]), port)


def parse_absolute(target: str, port: int, scheme: str = _SCHEME) -> tuple[Destination, str]:
    """Return the server and the path of ``http://server/path``; ``port`` is the default.

    Raises:
        InvalidDestination: ``target`` has another scheme or names no valid server.
    """
    if target[: len(scheme)].lower() != scheme:
        raise InvalidDestination(
            f"{target[:_SHOWN]!r} is not a request to a proxy, which has {scheme}server/path"
        )
    rest = target[len(scheme) :]
    end = next((at for at, sign in enumerate(rest) if sign in "/?#"), len(rest))
    path = rest[end:]
    return parse_authority(rest[:end], port), path if path.startswith("/") else f"/{path}"


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as error:
            raise InvalidDestination(f"{text[:_SHOWN]!r} is not an IPv6 address") from error
    name = text.lower().removesuffix(".")
    # Resolvers take a name that ends in a number for an address: 127.1, 0x7f000001, 2130706433.
    if _NUMBERS.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise InvalidDestination(f"{text[:_SHOWN]!r} is not an IPv4 address") from error
    if len(name) > _MOST_NAME or not _NAME.fullmatch(name):
        raise InvalidDestination(f"{text[:_SHOWN]!r} is not a host name")
    return name


HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
_STARS: Final = re.compile(r"\*+")


@dataclass(frozen=True, slots=True)
class Rule:
    """Hosts that match a glob, on one port or (None) on any port."""

    glob: str
    port: int | None = HTTPS_PORT

    @property
    def exact(self) -> bool:
        """Whether the rule names one host, so that the operator means exactly this host."""
        return not is_glob(self.glob)

    def matches(self, destination: Destination) -> bool:
        """Whether the rule applies to a server."""
        fits = self.port is None or self.port == destination.port
        return fits and compile_glob(self.glob).fullmatch(destination.host) is not None


def parse_rule(text: str) -> Rule:
    """Parse ``host``, ``host:port`` or ``host:*``; the host may be a glob, 443 is the default."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text.lower(), str(HTTPS_PORT)
    host = host.removeprefix("[").removesuffix("]")
    return Rule(_STARS.sub("*", host), None if port == "*" else int(port))


@dataclass(frozen=True, slots=True)
class Permission:
    """The rules for tunnels.

    ``private``: tunnels may lead into private networks.  ``barred``: hosts that get no tunnel.
    ``limited``: hosts of registries with ``allow`` or ``deny`` rules, or with policies; these get a
    tunnel only if a rule names the host itself.  ``near``: only clients in private networks get
    tunnels, because no other clients are configured.
    """

    rules: Sequence[Rule]
    private: bool = False
    barred: frozenset[str] = frozenset()
    near: bool = False
    limited: frozenset[str] = frozenset()

    def check(self, destination: Destination, client: str) -> bool:
        """Check whether a client may reach a server; return whether private addresses are allowed.

        Raises:
            TunnelError: the client is not allowed to reach the server (403).
        """
        if self.near and client and not is_local(client):
            text = f"{client} is not in a private network; [access] networks can allow it"
            raise TunnelError(403, f"no tunnel to {destination}: {text}")
        if destination.host in self.barred:
            text = f"{destination.host} belongs to an upstream that is not enabled"
            raise TunnelError(403, f"{text}: set enabled = true in its table of [upstreams]")
        matching = [rule for rule in self.rules if rule.matches(destination)]
        if not matching:
            text = f'its operator allows it with "{destination}" in allow of [proxy]'
            raise TunnelError(403, f"this proxy opens no tunnel to {destination}; {text}")
        exact = any(rule.exact for rule in matching)
        if destination.host in self.limited and not exact:
            text = f"allow and deny of [upstreams], or policies, limit {destination.host}"
            raise TunnelError(403, f'{text}: a tunnel needs "{destination}" in allow of [proxy]')
        return self.private or exact


def check_address(destination: Destination, address: str, *, private: bool) -> None:
    """Check one address of a server.

    Raises:
        TunnelError: the address is private, and ``private`` is false (403).
    """
    if not private and leads_inside(address):
        raise TunnelError(
            403,
            f"{destination} is at the private address {address}; the operator of this proxy allows "
            f'it with "{destination}" in allow of [proxy], or private = true',
        )


def leads_inside(address: str) -> bool:
    """Whether an address is invalid, is not public, or maps to an address that is not public."""
    return lookup_address(address) is None or is_private(address)


READING: Final = frozenset({"GET", "HEAD"})
_METHODS: Final = READING | {"POST", "PUT", "PATCH", "DELETE"}
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
        return path if method in READING else None
    permit(endpoint.name)
    if isinstance(endpoint, UploadEndpoint):
        _check_mount(query, permit)
    return plain_path(path)


def refusal(upstream: str) -> OciError:
    """Return the error for a request that is not passed on."""
    return OciError(
        ErrorCode.DENIED,
        f'allow and deny of [upstreams."{upstream}"], or policies, apply: the mirror passes on '
        "only requests for tokens, and requests of the registry API to allowed repositories",
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
