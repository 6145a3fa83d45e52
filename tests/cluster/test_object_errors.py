"""What is said of a request to the object store that failed: one line, without obstore's fields."""

import asyncio
import ssl

import obstore
import pytest
import trustme
from obstore.store import from_url

from mirror.cluster.object_errors import cause, lacks_bucket
from tests.peers.process import free_port

#: As obstore 0.12 says it; the bodies are those of SeaweedFS, versitygw and Azurite.
DENIED = """\
The operation lacked the necessary privileges to complete for path c/x: Error performing PUT \
http://s3.example.com:9000/images/c/x in 352.39µs - Server returned non-2xx status code: \
403 Forbidden: <?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not \
match the signature you provided. Check your key and signing method.</Message></Error>

Debug source:
PermissionDenied { path: "c/x", message: "none" }"""
NO_BUCKET = """\
Generic S3 error: Error performing list request: Error performing GET \
http://s3.example.com:9000/wrong?list-type=2&prefix=c%2Fd%2F in 407.859µs - Server returned \
non-2xx status code: 404 Not Found: <?xml version="1.0" encoding="UTF-8"?>
<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist.</Message></Error>"""
NO_CONTAINER = """\
Object at location c/x not found: Error performing GET http://acc.example.com/wrong/c/x in 4.28ms \
- Server returned non-2xx status code: 404 Not Found: <?xml version="1.0" standalone="yes"?>
<Error>
  <Code>ContainerNotFound</Code>
  <Message>The specified container does not exist.
RequestId:2564d907-9647-4368-897e-d09583af1ced</Message>
</Error>"""
NO_OBJECT = """\
Object at location c/x not found: Error performing HEAD http://s3.example.com:9000/images/c/x in \
4.28ms - Server returned non-2xx status code: 404 Not Found: no body"""
NO_ROLE = """\
Generic MicrosoftAzure error: Error performing token request: Error performing GET \
http://169.254.169.254/metadata/identity/oauth2/token?api-version=2019-08-01 in 888.48µs - \
Server returned non-2xx status code: 403 Forbidden: denied"""


DENIED_SAID = (
    "http://s3.example.com:9000 answers 403 SignatureDoesNotMatch (The request signature we "
    "calculated does not match the signature you provided. Check your key and signing method)"
)
NO_BUCKET_SAID = (
    "http://s3.example.com:9000 answers 404 NoSuchBucket (The specified bucket does not exist)"
)
NO_CONTAINER_SAID = (
    "http://acc.example.com answers 404 ContainerNotFound (The specified container does not exist)"
)
NO_ROLE_SAID = (
    "no credentials: none are configured, and http://169.254.169.254, which has those of a "
    "machine's role, answers 403"
)
NO_ACCOUNT_SAID = (
    "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY unless the machine has a role"
)

NO_NAME = """\
Generic S3 error: Error performing GET http://s3.example.com:9000/b/c/x in 947.284µs - HTTP error: \
error sending request

Debug source:
Generic { source: hyper_util::client::legacy::Error(
    Connect,
    ConnectError(
        "dns error",
        Custom {
            kind: Uncategorized,
            error: "failed to lookup address information: Name or service not known",
        },
    ),
) }"""
NO_NAME_SAID = (
    "http://s3.example.com:9000 cannot be reached (failed to lookup address information: Name or "
    "service not known)"
)


@pytest.mark.parametrize(
    ("said", "expected", "bucket"),
    [
        (NO_NAME, NO_NAME_SAID, True),
        (DENIED, DENIED_SAID, True),
        (NO_BUCKET, NO_BUCKET_SAID, False),
        (NO_CONTAINER, NO_CONTAINER_SAID, False),
        (NO_OBJECT, "http://s3.example.com:9000 answers 404", True),
        (NO_ROLE, NO_ROLE_SAID, True),
        ("Generic MicrosoftAzure error: Account must be specified", NO_ACCOUNT_SAID, True),
        ("a line\nand more", "a line", True),
        ("an \x1b[31m escape", "'an \\x1b[31m escape'", True),
        ("", "Exception", True),
    ],
)
def test_the_reason_is_in_one_line(said, expected, bucket):
    assert cause(Exception(said)) == expected
    assert lacks_bucket(Exception(said)) is not bucket


def test_a_time_out_is_no_answer_in_time():
    assert cause(TimeoutError()) == "no answer in time"


async def asked(endpoint: str) -> str:
    """What is said of a request to a server that cannot be talked to."""
    store = from_url(
        "s3://images/cache",
        config={
            "endpoint": endpoint,
            "region": "r",
            "access_key_id": "key",
            "secret_access_key": "secret",
        },
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(Exception, match="Generic S3 error") as failed:
        await obstore.get_async(store, "a")
    return cause(failed.value).removeprefix(f"{endpoint} ")


async def test_a_server_that_cannot_be_reached_is_told():
    assert (
        await asked(f"http://127.0.0.1:{free_port()}") == "cannot be reached (Connection refused)"
    )


async def test_a_certificate_of_an_unknown_authority_and_a_server_without_tls_are_told():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        writer.close()

    for tls, expected in (
        (context, "has a certificate that is not trusted (UnknownIssuer): ca_file adds a CA"),
        (None, "does not speak TLS"),
    ):
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert await asked(f"https://127.0.0.1:{port}") == expected
