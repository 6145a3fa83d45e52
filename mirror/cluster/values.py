"""Entries that expire and that all replicas share: tags, listings, refusals, tokens, limits.

They save questions to upstream, no more.  A digest verifies content, but nothing verifies which
digest a tag means: so each value is signed together with its name under the common secret, and one
that no replica wrote counts for nothing.  Tokens, and what rules know, are encrypted under its key.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirror.cluster.secret import Secret
from mirror.cluster.state import State
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, descriptor_fields
from mirror.store.interface import IndexUnavailableError, Link, TagStore
from mirror.upstream.login import SharedLogin

V = TypeVar("V")
_SIGNATURE_BYTES: Final = 64
_NONCE_BYTES: Final = 12  # of AES-GCM
#: Larger listings stay in the memory of each replica.
_MOST_BYTES: Final = 256 * 1024
#: In the name of a fresh tag after a push through this mirror; it is not that of a link.
_PUSHED: Final = " since "


class Values(Generic[V]):
    """Values of one kind; see :class:`mirror.ttl_cache.SharedValues`."""

    def __init__(
        self,
        state: State,
        secret: Secret,
        kind: str,
        encode: Callable[[V], bytes | None],
        decode: Callable[[bytes], V],
    ) -> None:
        """``encode`` returns None for a value that is not shared.

        ``decode`` raises ValueError, LookupError or TypeError for a value of another form.
        """
        self._state = state
        self._secret = secret
        self._kind = kind
        self._encode = encode
        self._decode = decode

    async def lookup(self, name: str) -> tuple[V, float] | None:
        found = await self._state.lookup(self._key(name))
        if found is None:
            return None
        said, left = found
        body = self._verified(name, said)
        if body is None:
            return None
        until, _, body = body.partition(b" ")
        try:
            left = min(left, float(until) - time.time())
            return (self._decode(body), left) if left > 0 else None
        except (ValueError, LookupError, TypeError):
            return None  # of another version of the mirror

    async def put(self, name: str, value: V, ttl: float) -> None:
        body = self._encode(value)
        if body is not None and len(body) <= _MOST_BYTES:
            # The end of its life is signed too: who can write to Redis cannot bring it back later.
            body = f"{time.time() + ttl:.3f} ".encode() + body
            await self._state.put(self._key(name), self._protected(name, body), ttl)

    async def forget(self, name: str) -> None:
        await self._state.forget(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._kind}:{name}"

    def _protected(self, name: str, body: bytes) -> bytes:
        """Return a value for the shared state, bound to its name."""
        return self._secret.sign(*self._signed(name, body)).encode() + body

    def _verified(self, name: str, said: bytes) -> bytes | None:
        """Return the value in an entry, None if no replica wrote the entry under this name."""
        signature, body = said[:_SIGNATURE_BYTES], said[_SIGNATURE_BYTES:]
        known = self._secret.knows(signature.decode(errors="replace"), *self._signed(name, body))
        return body if known else None

    def _signed(self, name: str, body: bytes) -> tuple[str, ...]:
        return "value", self._kind, name, hashlib.sha256(body).hexdigest()


class FreshTags(Values[Descriptor]):
    """Tags by the names of their links; the local store keeps what another replica has learned."""

    def __init__(self, state: State, secret: Secret, tags: TagStore) -> None:
        super().__init__(state, secret, "tag", _encode_descriptor, _decode_descriptor)
        self._tags = tags

    async def lookup(self, name: str) -> tuple[Descriptor, float] | None:
        found = await super().lookup(name)
        if found is not None and _PUSHED not in name:
            with contextlib.suppress(IndexUnavailableError):
                await self._tags.put(name, Link(found[0], time.time()))
        return found


class SealedValues(Values[V]):
    """Values that are encrypted; not even their names tell what they are for."""

    def _key(self, name: str) -> str:
        return super()._key(self._secret.sign("sealed", name))

    def _protected(self, name: str, body: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, body, self._key(name).encode())

    def _verified(self, name: str, said: bytes) -> bytes | None:
        nonce, body = said[:_NONCE_BYTES], said[_NONCE_BYTES:]
        try:
            return self._cipher().decrypt(nonce, body, self._key(name).encode())
        except (InvalidTag, ValueError):  # ValueError: too short
            return None

    def _cipher(self) -> AESGCM:
        return AESGCM(self._secret.key("sealed values"))


class Tokens(SealedValues[str]):
    """Tokens of upstreams."""

    def __init__(self, state: State, secret: Secret, login: str) -> None:
        super().__init__(state, secret, f"token:{login}", str.encode, bytes.decode)


def _encode_descriptor(descriptor: Descriptor) -> bytes:
    return json.dumps(descriptor_fields(descriptor)).encode()


def _decode_descriptor(body: bytes) -> Descriptor:
    fields = json.loads(body)
    media_type, size = fields["mediaType"], fields["size"]
    if not isinstance(media_type, str) or not isinstance(size, int):
        raise TypeError("no descriptor")
    return Descriptor(media_type, Digest.parse(fields["digest"]), size)


#: A body and its header fields by name, as in ``pull.listings``.
_Page = tuple[bytes, Mapping[str, Any]]


def _encode_page(page: _Page) -> bytes | None:
    body, fields = page
    if fields["large"]:
        return None
    return json.dumps([fields["next_query"], fields["filters_applied"]]).encode() + b"\n" + body


def _decode_page(said: bytes) -> _Page:
    head, _, body = said.partition(b"\n")
    next_query, filters = map(str, json.loads(head))
    return body, {
        "next_query": next_query,
        "filters_applied": filters,
        "large": False,
        "hold": None,
    }


@dataclass(frozen=True, slots=True)
class SharedCaches:
    """All that replicas tell each other: tags, refusals of upstreams, listings.

    ``login`` returns the tokens and rate limits of a login: upstream, user name, password.
    """

    freshness: FreshTags
    refusals: Values[str]
    pages: Values[_Page]
    login: Callable[[str, str, str], SharedLogin]

    @classmethod
    def of(cls, state: State, secret: Secret, tags: TagStore) -> Self:
        """``tags`` are those of the local store."""
        return cls(
            FreshTags(state, secret, tags),
            Values(state, secret, "refusal", str.encode, bytes.decode),
            Values(state, secret, "page", _encode_page, _decode_page),
            partial(_login, state, secret),
        )


def _login(
    state: State, secret: Secret, upstream: str, username: str, password: str
) -> SharedLogin:
    """Return what replicas with the same login share; those with another one do not see it."""
    login = secret.sign("login", json.dumps([upstream, username, password]))
    limits = Values(state, secret, f"limit:{login}", str.encode, bytes.decode)
    return SharedLogin(Tokens(state, secret, login), limits)
