"""All parsers of outside text, each with the properties that hold for any input.

A check takes bytes as from a socket, and raises if the parser violates a property.
"""

import contextlib
import io
import json
import math
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from mirror.config.fields import Duration, Size
from mirror.oci.byterange import RangeNotSatisfiable, parse_content_range, parse_ranges
from mirror.oci.challenge import parse_basic, parse_challenges
from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.endpoint import Endpoint, Ping, parse_endpoint
from mirror.oci.errors import OciError
from mirror.oci.image_layout import NotALayout, blob_file, merged_index, parse_file, parse_index
from mirror.oci.image_name import parse_image
from mirror.oci.manifest import (
    NotAManifest,
    identify,
    references,
)
from mirror.oci.media_types import CURRENT_TYPES, MANIFEST_TYPES, accepts, narrow_accept
from mirror.oci.platform import InvalidPlatform, Platform
from mirror.oci.reference import (
    InvalidName,
    InvalidReference,
    parse_reference,
    parse_repository,
    parse_tag,
    split_registry,
)
from mirror.proxy.permission import InvalidDestination, parse_absolute, parse_authority
from mirror.transfer.tar import DamagedTar, header, padding, read_member
from mirror.upstream.addresses import is_private
from mirror.upstream.rate_limit import RateLimitPause
from mirror.upstream.routing import ForbiddenError, Names, Router, UnknownRegistryError
from mirror.upstream.token_service import parse_token
from mirror.upstream.transport import _leading_number as parse_number

MAX_BYTES = 64 * 1024
_MAX_SECONDS = 0.5
_HEX = "0123456789abcdef" * 4
_DIGEST = f"sha256:{_HEX}"
_CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _DIGEST, "size": 2}
_IMAGE = {"schemaVersion": 2, "mediaType": MANIFEST_TYPES[2], "config": _CONFIG, "layers": []}
_INDEX = {"schemaVersion": 2, "manifests": [{**_CONFIG, "platform": {"os": "linux"}}]}
_TOKEN = {"token": "abc.def", "access_token": "x", "expires_in": 300, "issued_at": "2024"}


@dataclass(frozen=True)
class Parser:
    """A parser with its check, and valid inputs."""

    name: str
    check: Callable[[bytes], object]
    seeds: tuple[bytes, ...]

    def try_all(self, data: bytes) -> None:
        """Check an input, and the time for it and for a long text made of it."""
        self._timed(data[:MAX_BYTES])
        # Long texts are slow, so only a few are tried; the choice must be deterministic.
        if 1 < len(data) < MAX_BYTES // 4 and zlib.crc32(data) % 8 == 0:
            head, tail = data[: len(data) // 2], data[len(data) // 2 :]
            times = MAX_BYTES // len(data)
            self._timed(head + tail * times)
            self._timed(head * times + tail)

    def _timed(self, data: bytes) -> None:
        # Thread time, so that other load on the machine does not count.
        started = time.thread_time()
        self.check(data)
        seconds = time.thread_time() - started
        assert seconds < _MAX_SECONDS, f"{seconds:.2f} s for {len(data)} bytes"


def _text(data: bytes) -> str:
    """A header field as aiohttp decodes it."""
    return data.decode("utf-8", "surrogateescape")


def _digest(data: bytes) -> None:
    text = _text(data)
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert str(digest) == text
    assert len(bytes.fromhex(digest.hex)) in {32, 64}


def _repository(data: bytes) -> None:
    text = _text(data)
    try:
        name = parse_repository(text)
    except InvalidName:
        return
    assert name == text
    assert len(name) <= 255
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-/")
    assert {"", ".", ".."}.isdisjoint(name.split("/"))


def _tag(data: bytes) -> None:
    text = _text(data)
    try:
        tag = parse_tag(text)
    except InvalidReference:
        return
    assert tag == text
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", tag)
    assert tag[0] not in ".-"


def _reference(data: bytes) -> None:
    text = _text(data)
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert str(reference) == text
    assert parse_reference(str(reference)) == reference
    assert isinstance(reference, Digest) == (":" in text)


def _registry(data: bytes) -> None:
    text = _text(data)
    registry, rest = split_registry(text)
    assert text == (rest if registry is None else f"{registry}/{rest}")


def _endpoint(data: bytes) -> None:
    method, _, path = _text(data).partition(" ")
    try:
        endpoint = parse_endpoint(method, path)
    except OciError as error:
        refusal = error
    else:
        _check_endpoint(method, path, endpoint)
        return
    assert 400 <= refusal.status < 500
    assert json.loads(refusal.body())["errors"][0]["message"]


def _check_endpoint(method: str, path: str, endpoint: Endpoint) -> None:
    assert method in {"GET", "HEAD"}
    assert parse_endpoint(method, re.sub("%3[aA]", ":", path)) == endpoint
    if not isinstance(endpoint, Ping):
        assert re.fullmatch(r"[A-Za-z0-9._:/-]+", endpoint.name)
        assert {"", ".", ".."}.isdisjoint(endpoint.name.split("/"))
    assert re.fullmatch(r"[A-Za-z0-9.:-]*", endpoint.prefix)


def _range(data: bytes) -> None:
    for size in (0, 1, 10, 2**40):
        try:
            ranges = parse_ranges(_text(data), size)
        except RangeNotSatisfiable:
            continue
        assert sum(wanted.length for wanted in ranges) <= size
        for wanted in ranges:
            assert 0 <= wanted.start < wanted.stop <= size
            start, stop, total = parse_content_range(wanted.content_range(size))
            assert (start, stop, total) == (wanted.start, wanted.stop, size)


def _content_range(data: bytes) -> None:
    try:
        start, stop, size = parse_content_range(_text(data))
    except ValueError:
        return
    assert 0 <= start < stop <= 10**20
    assert size is None or stop <= size
    again = f"bytes {start}-{stop - 1}/{'*' if size is None else size}"
    assert parse_content_range(again) == (start, stop, size)


def _challenges(data: bytes) -> None:
    text = _text(data)
    challenges = parse_challenges(text)
    assert len(challenges) <= len(text)
    for challenge in challenges:
        assert challenge.scheme == challenge.scheme.lower()
        assert re.fullmatch(r"[!-~]+", challenge.scheme)
        assert sum(map(len, challenge.parameters.values())) <= len(text)
        assert all(name == name.lower() for name in challenge.parameters)


def _manifest(data: bytes) -> None:
    content_type, _, body = data.partition(b"\n")
    for sent_as in (_text(content_type), "", "application/json"):
        try:
            media_type = identify(body, sent_as)
        except NotAManifest:
            continue
        assert media_type in MANIFEST_TYPES
        assert identify(body, media_type) == media_type
    try:
        parts = references(body)
    except NotAManifest:
        return
    assert all(0 <= part.size < 2**63 for part in parts)


def _accept(data: bytes) -> None:
    text = _text(data)
    narrow = narrow_accept(text)
    taken = [name for name in MANIFEST_TYPES if accepts(text, name)]
    if narrow:
        assert narrow.split(", ") == taken
        assert narrow_accept(narrow) == narrow
    else:
        assert not taken or set(CURRENT_TYPES) <= set(taken)


def _retry_after(data: bytes) -> None:
    gate = RateLimitPause("registry", "limits", clock=lambda: 0.0)
    error = gate.close(_text(data))
    assert 0 <= error.retry_after <= 3600
    assert isinstance(math.ceil(error.retry_after), int)


def _token(data: bytes) -> None:
    try:
        token, expires_in = parse_token(data)
    except ValueError:  # the caller treats it as "no token"
        return
    f"Bearer {token}".encode()
    assert token.isprintable()
    assert 1 <= expires_in < math.inf


def _rate_limit(data: bytes) -> None:
    number = parse_number(_text(data))
    assert number is None or 0 <= number < math.inf


def _basic(data: bytes) -> None:
    given = parse_basic(_text(data))
    if given is not None:
        assert ":" not in given[0]
        ":".join(given).encode()


def _directory(data: bytes) -> None:
    name, namespace, host, prefix = (_text(data).split("\n") + [""] * 4)[:4]
    hub = Names("docker.io", ("registry-1.docker.io",), ("hub.test",), library=True)
    directory = Router([hub, Names("quay.io", deny=("secret/*",))], "docker.io")
    try:
        target = directory.resolve(name, prefix=prefix, namespace=namespace, host=host)
    except (UnknownRegistryError, InvalidName, ForbiddenError):
        return
    assert target.upstream in {"docker.io", "quay.io"}
    assert parse_repository(target.repository) == target.repository
    assert target.upstream == "docker.io" or not target.repository.startswith("secret/")


def _address(data: bytes) -> None:
    assert isinstance(is_private(_text(data)), bool)


def _quantity(data: bytes) -> None:
    text = _text(data)
    try:
        size = Size.parse(text)
        assert Size.parse(size.text) == size
        assert size.bytes >= 0
        assert size.share is None or 0 <= size.share <= 1
    except ValueError:
        pass
    try:
        duration = Duration.parse(text)
    except ValueError:
        return
    assert Duration.parse(duration.text) == duration
    assert 0 <= duration.seconds < math.inf


def _image(data: bytes) -> None:
    try:
        image = parse_image(_text(data))
    except (InvalidName, InvalidReference):
        return
    assert parse_image(str(image)) == image


def _platform(data: bytes) -> None:
    try:
        platform = Platform.parse(_text(data))
    except InvalidPlatform:
        return
    assert Platform.parse(str(platform)) == platform


def _layout(data: bytes) -> None:
    """A file name and, after the line break, an index."""
    name, _, index = data.partition(b"\n")
    with contextlib.suppress(NotALayout):
        what = parse_file(_text(name))
        assert not isinstance(what, Digest) or blob_file(what) == _text(name).removeprefix("./")
    try:
        roots = parse_index(index)
    except NotALayout:
        return
    assert len(parse_index(merged_index(index, []))) == len(roots)


def _tar(data: bytes) -> None:
    stream = io.BytesIO(data)
    with contextlib.suppress(DamagedTar):
        while (member := read_member(stream.read)) is not None:
            assert member.size >= 0
            stream.seek(min(member.size + padding(member.size), len(data)), io.SEEK_CUR)


def _connect(data: bytes) -> None:
    """The target of CONNECT, and the address of a proxy."""
    text = _text(data)
    with contextlib.suppress(InvalidDestination):
        destination = parse_authority(text)
        assert parse_authority(str(destination)) == destination
        assert not set(destination.host) & set(" /@?#[]\\%")
    with contextlib.suppress(InvalidDestination):
        _, path = parse_absolute(f"http://{text}", 80)
        assert path.startswith("/")


def _made(*texts: object) -> tuple[bytes, ...]:
    return tuple((each if isinstance(each, str) else json.dumps(each)).encode() for each in texts)


_ACCEPT = ", ".join(f"{name};q=0.5" for name in MANIFEST_TYPES)

PARSERS = (
    Parser("digest", _digest, _made(_DIGEST, f"sha512:{_HEX}{_HEX}")),
    Parser("repository", _repository, _made("library/alpine", "a.b__c--d/e_f")),
    Parser("tag", _tag, _made("latest", "_1.0-rc1")),
    Parser("reference", _reference, _made("latest", _DIGEST)),
    Parser("split_registry", _registry, _made("docker.io/library/alpine", "localhost/a", "a/b")),
    Parser(
        "endpoint",
        _endpoint,
        _made(
            "GET /v2/",
            "HEAD /v2/library/alpine/manifests/latest",
            f"GET /docker.io:443/v2/a/b/blobs/{_DIGEST}",
            "GET /v2/quay.io/a/tags/list",
            f"GET /v2/a/referrers/sha256%3A{_HEX}",
        ),
    ),
    Parser("range", _range, _made("bytes=0-9", "bytes=5-", "bytes=-5", "bytes=0-1,3-4")),
    Parser("content_range", _content_range, _made("bytes 0-9/10", "bytes 5-9/*")),
    Parser(
        "challenges",
        _challenges,
        _made(
            'Bearer realm="https://auth.test/token",service="r",scope="repository:a:pull"',
            'Negotiate abc==, Basic realm="a \\"b\\"", charset=UTF-8',
        ),
    ),
    Parser(
        "manifest",
        _manifest,
        tuple(
            f"{MANIFEST_TYPES[2]}\n{body}".encode() for body in map(json.dumps, [_IMAGE, _INDEX])
        ),
    ),
    Parser("accept", _accept, _made(_ACCEPT, "*/*", "application/*;q=0, */*;q=0.1")),
    Parser("retry_after", _retry_after, _made("120", "Wed, 21 Oct 2015 07:28:00 GMT")),
    Parser("token", _token, _made(_TOKEN, {"access_token": "x", "expires_in": 1.5})),
    Parser("rate_limit", _rate_limit, _made("100;w=21600", "76")),
    Parser("basic", _basic, _made("Basic dXNlcjpwYXNz", "basic Og==")),
    Parser("directory", _directory, _made("quay.io/a/b\nquay.io\nhub.test\ndocker.io", "alpine")),
    Parser("address", _address, _made("127.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1")),
    Parser("connect", _connect, _made("r.test:443", "[::1]:5000", "127.0.0.1:1", "r.test/v2/?n")),
    Parser("image", _image, _made("alpine", f"r.test:5000/a/b:1@{_DIGEST}")),
    Parser("platform", _platform, _made("linux/arm/v7", "aarch64")),
    Parser("layout", _layout, _made(f"blobs/sha256/{_HEX}\n{json.dumps(_INDEX)}")),
    Parser("tar", _tar, (header("a" * 120, 3) + b"abc" + bytes(509 + 1024), header("b", 1 << 40))),
    Parser("quantity", _quantity, _made("50GiB", "80%", "250ms", "1.5h")),
)
