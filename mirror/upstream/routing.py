"""Finds the upstream of a request, and the name of its repository there."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.oci.image_glob import compile_repositories
from mirror.oci.reference import Repository, parse_repository, split_registry
from mirror.upstream.login import Principal

_USUAL_PORT: Final = ":443"


class UnknownRegistryError(Exception):
    """The registry is not configured; ``name`` is the name that the client used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ForbiddenError(Exception):
    """The configuration forbids a repository (``allow`` and ``deny``)."""

    def __init__(self, upstream: str, repository: str) -> None:
        super().__init__(f"{upstream} {repository}")
        self.upstream = upstream
        self.repository = repository


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one upstream and its permitted repositories.

    ``aliases`` are other names in ``ns=`` and in paths, ``hosts`` are values of the Host header
    that select it, ``library``: a one-word repository means ``library/<word>``.  A repository is
    permitted if a glob in ``allow`` matches it and no glob in ``deny`` does (``oci.image_glob``).
    ``netloc`` is the address of the upstream, ``host`` or ``host:port``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    library: bool = False
    allow: tuple[str, ...] = ("**",)
    deny: tuple[str, ...] = ()
    netloc: str = ""

    def permit(self, repository: str) -> bool:
        """Whether a repository is permitted."""
        allowed = any(compile_repositories(glob).fullmatch(repository) for glob in self.allow)
        return allowed and not any(
            compile_repositories(glob).fullmatch(repository) for glob in self.deny
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A repository of an upstream; ``principal`` is the client with its own credentials.

    ``since`` changes after each push, so that earlier cached answers are not used.
    """

    upstream: str
    repository: Repository
    principal: Principal | None = None
    since: str = ""

    def __str__(self) -> str:
        """The cache key: it contains the principal, so that principals do not share answers."""
        name = (
            self.record if self.principal is None else f"{self.record} as {self.principal.identity}"
        )
        return f"{name} since {self.since}" if self.since else name

    @property
    def record(self) -> str:
        """The key of records that are the same for all clients and stay after a push."""
        return f"{self.upstream} {self.repository}"


def is_limited(allow: Collection[str], deny: Collection[str]) -> bool:
    """Whether ``allow`` or ``deny`` can forbid a repository."""
    return bool(deny) or {"*", "**"}.isdisjoint(allow)


class Router:
    """Finds the upstreams of this mirror by all their names."""

    def __init__(self, upstreams: Iterable[Names], default: str) -> None:
        self._names: dict[str, Names] = {}
        self._hosts: dict[str, Names] = {}
        for upstream in upstreams:
            for name in (upstream.name, *upstream.aliases):
                self._names[name.lower()] = upstream
            for host in upstream.hosts:
                self._hosts[host.lower()] = upstream
        self._default = self._names[default.lower()]
        # Names win over addresses: several upstreams can share one address.
        places = {each.netloc.lower(): each for each in reversed(self._names.values())}
        self._places = {**places, **self._hosts, **self._names}

    def resolve(
        self, name: str, *, prefix: str, namespace: str | None, host: str, connected: str = ""
    ) -> Target:
        """Find the upstream and the repository of a request; the first match wins.

        Args:
            name: the full name after ``/v2/``, which may begin with a registry.
            prefix: the path before ``/v2/``.
            namespace: the ``ns`` query parameter (OCI distribution spec, registry proxying).
            host: the Host header.
            connected: in proxy mode, the upstream that the client connected to.

        Raises:
            UnknownRegistryError: the registry is not configured.
            InvalidName: the rest is not the name of a repository.
            ForbiddenError: the repository is not permitted.
        """
        registry, rest = split_registry(name)
        if connected and not namespace:
            return _target(self._named(connected), name)
        chosen = self._selected(prefix, namespace, host)
        if chosen is None:
            if registry is None:
                return _target(self._default, name)
            return _target(self._named(registry), rest)
        # Podman may name the registry twice: in ns= and in the location of the mirror.
        if registry is not None and _lookup(self._names, registry) is chosen:
            return _target(chosen, rest)
        return _target(chosen, name)

    def lookup_place(self, host: str, port: int, usual_port: int) -> str | None:
        """Return the upstream that clients mean by a host and port, None if there is none.

        A name without a port means ``usual_port``.
        """
        place = f"[{host}]" if ":" in host else host
        names = self._places.get(f"{place}:{port}")
        if names is None and port == usual_port:
            names = self._places.get(place)
        return None if names is None else names.name

    def is_limited(self, upstream: str) -> bool:
        """Whether ``allow`` or ``deny`` of an upstream can forbid a repository.

        Raises:
            UnknownRegistryError: the upstream is not configured.
        """
        names = self._named(upstream)
        return is_limited(names.allow, names.deny)

    def upstream(self, registry: str) -> str:
        """Return the upstream with this registry name or alias.

        Raises:
            UnknownRegistryError: the registry is not configured.
        """
        return self._named(registry).name

    def _selected(self, prefix: str, namespace: str | None, host: str) -> Names | None:
        if namespace:
            return self._named(namespace)
        by_host = _lookup(self._hosts, host)
        if by_host is not None:
            return by_host
        return self._named(prefix) if prefix else None

    def _named(self, name: str) -> Names:
        found = _lookup(self._names, name)
        if found is None:
            raise UnknownRegistryError(name)
        return found


def _lookup(table: Mapping[str, Names], name: str) -> Names | None:
    """Return the entry of a host, whose usual port may be given or left out."""
    exact, plain = name.lower(), name.lower().removesuffix(_USUAL_PORT)
    return table.get(exact) or table.get(plain) or table.get(plain + _USUAL_PORT)


def _target(names: Names, repository: str) -> Target:
    if names.library and "/" not in repository:
        repository = f"library/{repository}"
    target = Target(names.name, parse_repository(repository))
    if not names.permit(target.repository):
        raise ForbiddenError(target.upstream, target.repository)
    return target
