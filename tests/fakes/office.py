"""Private repositories: who may read which, by password or by token."""

import base64
import json
import secrets
from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes.content import Image
from tests.fakes.registry import FakeRegistry

EVERYBODY = "everybody"


def basic(user: str, password: str) -> str:
    """An Authorization field."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Office:
    """Who may read which repository of a registry, and the tokens it has issued.

    A repository has nothing but its own blobs, as in real registries.  ``bearer`` says that tokens
    of the token service at ``realm`` are wanted instead of passwords; ``hidden`` that what one
    may not see is said not to be there.
    """

    registry: FakeRegistry
    bearer: bool = False
    realm: str = ""
    hidden: bool = False
    readers: dict[str, set[str]] = field(default_factory=dict)
    blobs: dict[str, set[str]] = field(default_factory=dict)
    scopes: dict[str, str] = field(default_factory=dict)
    token_calls: list[str | None] = field(default_factory=list)
    given: list[tuple[str, str]] = field(default_factory=list)  # method and kind

    def __post_init__(self) -> None:
        self.registry.guard = self.guard

    def add(self, repository: str, content: Image, *readers: str) -> None:
        """Push an image with the tag 1 that only these may read."""
        self.registry.add_image(repository, content, "1")
        self.blobs.setdefault(repository, set()).update(content.digests)
        self.readers.setdefault(repository, set()).update(readers)

    def content(self, repository: str) -> tuple[str, list[str]]:
        """The digests of the manifest and the blobs of a repository's image."""
        manifest = self.registry.tags[repository, "1"]
        document = json.loads(self.registry.manifests[repository, manifest][0])
        return manifest, [each["digest"] for each in (document["config"], *document["layers"])]

    def may_read(self, authorization: str | None, repository: str) -> bool:
        return not {EVERYBODY, authorization}.isdisjoint(self.readers.get(repository, set()))

    def knows(self, authorization: str | None) -> bool:
        return any(authorization in readers for readers in self.readers.values())

    def guard(self, request: web.BaseRequest, path: str) -> web.Response | None:
        """The registry's rules."""
        sent = request.headers.get("Authorization")
        if path == "/v2/":
            token = (sent or "").removeprefix("Bearer ")
            known = token in self.scopes if self.bearer else self.knows(sent)
            return None if known else self._challenge()
        repository, kind, reference = path.removeprefix("/v2/").rsplit("/", 2)
        if not self._lets_in(sent, repository):
            return web.Response(status=404) if self.hidden else self._challenge()
        if not self._has(repository, kind, reference):
            return web.Response(status=404)
        self.given.append((request.method, kind))
        return None

    def _has(self, repository: str, kind: str, reference: str) -> bool:
        if kind == "blobs":
            return reference in self.blobs.get(repository, set())
        digest = self.registry.tags.get((repository, reference), reference)
        return kind != "manifests" or (repository, digest) in self.registry.manifests

    def _lets_in(self, sent: str | None, repository: str) -> bool:
        if not self.bearer:
            return self.may_read(sent, repository)
        # What a token is good for was decided when it was issued, and holds until it expires.
        token = (sent or "").removeprefix("Bearer ")
        return self.scopes.get(token) == f"repository:{repository}:pull"

    def _challenge(self) -> web.Response:
        wanted = 'Basic realm="office"'
        if self.bearer:
            wanted = f'Bearer realm="{self.realm}",service="office"'
        return web.Response(status=401, headers={"WWW-Authenticate": wanted})

    async def issue(self, request: web.BaseRequest) -> web.Response:
        """The token service; a token that is good for nothing for who may not, as Docker Hub's."""
        sent, scope = request.headers.get("Authorization"), request.rel_url.query.get("scope", "")
        self.token_calls.append(sent)
        if sent is not None and not self.knows(sent):
            return web.Response(status=401)
        repository = scope.removeprefix("repository:").removesuffix(":pull")
        return web.json_response({"token": self.token(sent, repository), "expires_in": 3600})

    def token(self, authorization: str | None, repository: str) -> str:
        """A token as the service gives it to whoever sends this."""
        token = f"token-{secrets.token_hex(8)}"
        granted = self.may_read(authorization, repository)
        self.scopes[token] = f"repository:{repository}:pull" if granted else ""
        return token
