"""Which upstream a request means, and what the repository is called there."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from mirror.oci.reference import Repository, parse_repository, split_registry
from mirror.upstream.credentials import Principal

#: What Docker Hub is searched at: a name for it in images, and yet no registry.
_HUB_INDEX: Final = "index.docker.io"


class UnknownRegistryError(Exception):
    """A registry that is not configured; ``name`` is what the client asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ForbiddenError(Exception):
    """A repository that this mirror is told not to give out."""

    def __init__(self, upstream: str, repository: str) -> None:
        super().__init__(f"{upstream} {repository}")
        self.upstream = upstream
        self.repository = repository


@dataclass(frozen=True, slots=True)
class Names:
    """What one upstream goes by.

    ``aliases`` are other names for it in ``ns=`` and in paths, ``hosts`` are values of the Host
    header that mean it, ``library`` says that a one-word repository means ``library/<word>``.
    Of its repositories those may be had that a glob in ``allow`` matches and none in ``deny``;
    ``*`` stands for anything, slashes too.  ``netloc`` is where it is, ``host`` or ``host:port``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    library: bool = False
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    netloc: str = ""

    @property
    def limited(self) -> bool:
        """Whether there may be a repository that may not be had."""
        return is_limited(self.allow, self.deny)

    def permit(self, repository: str) -> bool:
        """Whether a repository may be had."""
        allowed = any(fnmatchcase(repository, glob) for glob in self.allow)
        return allowed and not any(fnmatchcase(repository, glob) for glob in self.deny)


@dataclass(frozen=True, slots=True)
class Target:
    """A repository of an upstream; ``visitor`` is who asks for it with credentials of its own.

    ``since`` is another text after each push: what upstream said before is not believed then.
    """

    upstream: str
    repository: Repository
    principal: Principal | None = None
    since: str = ""

    def __str__(self) -> str:
        """A name for what is remembered: nothing that one visitor is told is told to another."""
        name = (
            self.record if self.principal is None else f"{self.record} as {self.principal.identity}"
        )
        return f"{name} since {self.since}" if self.since else name

    @property
    def record(self) -> str:
        """A name for what stays, whoever asks and whatever is pushed."""
        return f"{self.upstream} {self.repository}"


def is_limited(allow: Collection[str], deny: Collection[str]) -> bool:
    """Whether globs may keep a repository back."""
    return bool(deny) or "*" not in allow


class Router:
    """The upstreams of this mirror by all their names."""

    def __init__(self, upstreams: Iterable[Names], default: str) -> None:
        self._names: dict[str, Names] = {}
        self._hosts: dict[str, Names] = {}
        for upstream in upstreams:
            for name in (upstream.name, *upstream.aliases):
                self._names[name.lower()] = upstream
            for host in upstream.hosts:
                self._hosts[host.lower()] = upstream
        self._default = self._names[default.lower()]
        # Where it is comes last: several may be behind one address, and go by their names then.
        places = {each.netloc.lower(): each for each in reversed(self._names.values())}
        self._places = {**places, **self._hosts, **self._names}
        self._places.pop(_HUB_INDEX, None)

    def resolve(
        self, name: str, *, prefix: str, namespace: str | None, host: str, connected: str = ""
    ) -> Target:
        """Find the upstream and repository a request means; the first match wins.

        Args:
            name: the full name after ``/v2/``, which may begin with a registry.
            prefix: what stands before ``/v2/``.
            namespace: the ``ns`` query parameter (OCI distribution spec, registry proxying).
            host: the Host header.
            connected: the upstream whose registry the client is connected to, as it believes.

        Raises:
            UnknownRegistryError: it means a registry that is not configured.
            InvalidName: what is left is no name of a repository.
            ForbiddenError: the repository may not be had.
        """
        registry, rest = split_registry(name)
        if connected and not namespace:
            return _target(self._named(connected), name)
        chosen = self._selected(prefix, namespace, host)
        if chosen is None:
            if registry is None:
                return _target(self._default, name)
            return _target(self._named(registry), rest)
        # Podman may say it twice: ns= for a mirror whose location already carries the registry.
        if registry is not None and self._names.get(registry.lower()) is chosen:
            return _target(chosen, rest)
        return _target(chosen, name)

    def lookup_place(self, host: str, port: int, usual_port: int) -> str | None:
        """The upstream whose registry clients mean by a host and port, None where it is none.

        A name without a port means ``usual_port``.
        """
        place = f"[{host}]" if ":" in host else host
        names = self._places.get(f"{place}:{port}")
        if names is None and port == usual_port:
            names = self._places.get(place)
        return None if names is None else names.name

    def is_limited(self, upstream: str) -> bool:
        """Whether ``allow`` or ``deny`` of an upstream keep a repository back.

        Raises:
            UnknownRegistryError: it is not configured.
        """
        return self._named(upstream).limited

    def upstream(self, registry: str) -> str:
        """The upstream that a registry's name means.

        Raises:
            UnknownRegistryError: it is not configured.
        """
        return self._named(registry).name

    def _selected(self, prefix: str, namespace: str | None, host: str) -> Names | None:
        if namespace:
            return self._named(namespace)
        if host.lower() in self._hosts:
            return self._hosts[host.lower()]
        return self._named(prefix) if prefix else None

    def _named(self, name: str) -> Names:
        try:
            return self._names[name.lower()]
        except KeyError:
            raise UnknownRegistryError(name) from None


def _target(names: Names, repository: str) -> Target:
    if names.library and "/" not in repository:
        repository = f"library/{repository}"
    target = Target(names.name, parse_repository(repository))
    if not names.permit(target.repository):
        raise ForbiddenError(target.upstream, target.repository)
    return target
