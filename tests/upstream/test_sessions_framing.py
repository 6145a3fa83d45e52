"""Responses whose framing is wrong, as Go's net/http (and so Docker) reads them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mirror.upstream.sessions import corrected
from tests.fakes import image
from tests.running import running

pytestmark = pytest.mark.slow

APP = image(b"layer")
REPO = "library/app"
BODY = APP.manifest
FIELDS = (
    b"Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"
    b"Docker-Content-Digest: " + APP.digest.encode() + b"\r\n"
)
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
#: The status line and the fields, and the body.
FORGIVEN = {
    "as it should be": (OK + LENGTH, BODY),
    "the same length twice": (OK + LENGTH + LENGTH, BODY),
    "the same length three times": (OK + LENGTH * 3, BODY),
    "length and chunked": (OK + b"Content-Length: 7\r\n" + CHUNKED, CHUNKS),
    "chunked and length": (OK + CHUNKED + b"content-length: 7\r\n", CHUNKS),
    "a space before the colon": (OK + b"X-Server : old\r\n" + LENGTH, BODY),
    "a space in a name": (OK + b"X Server: old\r\n" + LENGTH, BODY),
    "a folded field": (OK + b"X-A: a\r\n b: c\r\n" + LENGTH, BODY),
    "300 fields": (OK + b"".join(b"X-%d: a\r\n" % each for each in range(300)) + LENGTH, BODY),
    "no carriage returns": ((OK + LENGTH).replace(b"\r", b""), BODY),
    "no reason": (b"HTTP/1.1 200\r\n" + LENGTH, BODY),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + LENGTH * 2, BODY),
    "bytes after the body": (OK + LENGTH, BODY + b"more than that"),
    "no length": (OK, BODY),
}
REFUSED = {
    "two lengths": OK + LENGTH + b"Content-Length: 7\r\n",
    "a list of lengths": OK + b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY)),
    "no colon": OK + b"nonsense\r\n" + LENGTH,
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
}


@asynccontextmanager
async def answering(answer: bytes, pieces: int = 1) -> AsyncIterator[str]:
    """A server that sends the same bytes to each request; yields its address."""

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            step = -(-len(answer) // pieces)
            for start in range(0, len(answer), step):
                writer.write(answer[start : start + step])
                await writer.drain()
                await asyncio.sleep(0)

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("case", FORGIVEN)
async def test_what_go_forgives_is_forgiven(tmp_path, case, pieces):
    header, body = FORGIVEN[case]
    async with (
        answering(header + FIELDS + b"\r\n" + body, pieces) as url,
        running(tmp_path, {"docker.io": url}) as mirror,
    ):
        answer = await mirror.get(f"/v2/{REPO}/manifests/{APP.digest}")
        assert (answer.status, answer.body) == (200, BODY)
        assert answer.headers["Content-Length"] == str(len(BODY))


async def test_a_body_after_the_answer_to_head_is_ignored(tmp_path):
    async with (
        answering(OK + LENGTH + FIELDS + b"\r\n" + BODY) as url,
        running(tmp_path, {"docker.io": url}) as mirror,
    ):
        head = await mirror.get(f"/v2/{REPO}/manifests/1", "HEAD")
        assert (head.status, head.headers["Docker-Content-Digest"]) == (200, APP.digest)
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).body == BODY


@pytest.mark.parametrize("case", REFUSED)
async def test_what_go_refuses_is_502(tmp_path, case):
    async with (
        answering(REFUSED[case] + FIELDS + b"\r\n" + BODY) as url,
        running(tmp_path, {"docker.io": url}) as mirror,
    ):
        assert (await mirror.get(f"/v2/{REPO}/manifests/{APP.digest}")).status == 502


async def test_a_header_without_an_end_is_refused(tmp_path):
    async with (
        answering(OK + b"X-A: a\r\n" * 200_000) as url,
        running(tmp_path, {"docker.io": url}) as mirror,
    ):
        assert (await mirror.get(f"/v2/{REPO}/manifests/{APP.digest}")).status == 502


def test_a_header_without_a_mistake_is_left_as_it_is():
    header = OK + FIELDS + LENGTH + b"X-A: a b: c\r\n\tfolded: too\r\n\r\n"
    assert corrected(header) == header
