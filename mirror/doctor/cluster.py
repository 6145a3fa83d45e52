"""Examines what the mirrors of a cluster share: the object store, Redis, and each other.

Writes one small object to the object store, and removes it.
"""

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError
from yarl import URL

from mirror.cluster.connection import profile
from mirror.cluster.objects import Bucket, opened_bucket
from mirror.cluster.state import redis_trust
from mirror.cluster.tier import TierError
from mirror.cluster.upkeep import NoEvents
from mirror.config.cluster import ClusterConfig
from mirror.config.fields import masked
from mirror.doctor.report import Finding, Report, is_wrong, note, ok, wrong
from mirror.upstream.sessions import trusting
from mirror.user_error import UserError

_SECONDS: Final = 5.0
_MOST_SKEW_SECONDS: Final = 60.0
_DNS: Final = "dns:"
_RULE: Final = re.compile(r"<Rule>.*?</Rule>", re.DOTALL)
_LIFECYCLE: Final = "the rule that removes the parts of unfinished uploads"
_RIGHTS: Final = (
    "correct [cluster] objects and endpoint, and let the mirror list the bucket, and get, put and "
    "delete objects"
)
#: What the rights are called, by the scheme of ``objects``.
_NAMES_OF_RIGHTS: Final = {
    "s3": " (s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject)",
    "gs": " (the role Storage Object User)",
    "az": " (the role Storage Blob Data Contributor)",
}
_REDIRECT: Final = "correct [cluster] redirect_endpoint, or remove redirect_networks"
_ADD_RULE: Final = "add a lifecycle rule with AbortIncompleteMultipartUpload after 1 day"


async def examine_cluster(config: ClusterConfig) -> Report:
    """Examine everything that ``[cluster]`` names.

    Raises:
        UserError: the table names nothing.
    """
    if not (config.objects or config.state or config.peers):
        raise UserError("[cluster] names neither objects nor state nor peers")
    findings = [each async for each in _findings(config)]
    named = config.objects or masked(config.state) or config.advertise
    return Report(named, tuple(findings), "cluster of")


async def _findings(config: ClusterConfig) -> AsyncIterator[Finding]:
    if config.objects:
        bucket = opened_bucket(config, NoEvents())
        try:
            findings = [finding async for finding in _bucket(bucket)]
            if config.redirect_networks and not any(map(is_wrong, findings)):
                findings.append(await _redirect(bucket, _trust(config)))
            for finding in findings:
                yield finding
        finally:
            await bucket.close()
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    connector = aiohttp.TCPConnector(ssl=_trust(config))
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        if config.objects.startswith("s3:"):
            yield await _lifecycle(session, config)
        elif config.objects.startswith("gs:"):
            yield note(config.objects, f"{_LIFECYCLE} is not checked here", _ADD_RULE)
        if config.state:
            yield await _redis(masked(config.state), config)
        if config.advertise:
            yield await _mirror(session, config.advertise)
        for peer in config.peers:
            if peer.startswith(_DNS):
                yield await _name(peer)
            elif peer != config.advertise:
                yield await _mirror(session, peer)


def _trust(config: ClusterConfig) -> ssl.SSLContext:
    try:
        return trusting((config.ca_file,) if config.ca_file else ())
    except OSError as error:
        raise UserError(f"[cluster] ca_file holds no certificate: {error}") from error


async def _bucket(bucket: Bucket) -> AsyncIterator[Finding]:
    path = f"doctor/{secrets.token_hex(8)}"
    try:
        await bucket.write(path, b"mirror doctor")
        started = time.monotonic()
        body = await bucket.read(path, 100)
        milliseconds = (time.monotonic() - started) * 1000
        created = await bucket.write(path, b"again", replace=False)
        found = await bucket.lookup(path)
        await bucket.delete(path)
        left = await bucket.lookup(path)
    except TierError as error:
        rights = _RIGHTS + _NAMES_OF_RIGHTS.get(bucket.name.partition(":")[0], "")
        yield wrong(bucket.name, str(error).removeprefix(f"{bucket.name}: "), rights)
        return
    if body != b"mirror doctor" or found is None or left is not None:
        yield wrong(bucket.name, "does not return what was written to it", "use another one")
        return
    yield ok(bucket.name, f"takes and returns objects (first byte after {milliseconds:.0f} ms)")
    if created:
        text = "ignores If-None-Match, so that mirrors upload the same blob more than once"
        yield note(bucket.name, text, "use a server that has conditional writes")
    skew = abs(time.time() - found.modified)
    if skew > _MOST_SKEW_SECONDS:
        text = f"its clock and that of this machine differ by {skew:.0f} s"
        yield wrong(bucket.name, text, "set both clocks by NTP")


async def _redirect(bucket: Bucket, trust: ssl.SSLContext) -> Finding:
    """Load an object as a client does that a mirror redirects."""
    path, origin = f"doctor/{secrets.token_hex(8)}", ""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        await bucket.write(path, b"mirror doctor")
        address = URL(await bucket.address(path, _MOST_SKEW_SECONDS), encoded=True)
        origin = str(address.origin())
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(address, ssl=trust) as response,
        ):
            if response.status == 200:
                return ok(origin, "gives objects to redirected clients")
            return wrong(origin, f"answers redirected clients with {response.status}", _REDIRECT)
    except TierError as error:
        reason = f"signs no addresses: {str(error).removeprefix(f'{bucket.name}: ')}"
        return wrong(bucket.name, reason, _REDIRECT)
    except (aiohttp.ClientError, OSError) as error:
        reason = f"cannot be reached from here: {str(error) or 'no answer in time'}"
        return note(origin, reason, "try it from a client of [cluster] redirect_networks")
    finally:
        with contextlib.suppress(TierError):
            await bucket.delete(path)


async def _lifecycle(session: aiohttp.ClientSession, config: ClusterConfig) -> Finding:
    if config.credentials_file:
        keys = profile(config.credentials_file)
    else:
        names = ("access_key_id", "secret_access_key", "session_token")
        keys = {name: os.environ.get(f"AWS_{name.upper()}", "") for name in names}
    if not keys.get("access_key_id"):
        text = f"{_LIFECYCLE} is not checked here: there are no keys, but a role"
        return note(config.objects, text, _ADD_RULE)
    region = config.region or os.environ.get("AWS_REGION") or "us-east-1"
    address = config.endpoint or f"https://s3.{region}.amazonaws.com"
    parts = urlsplit(f"{address}/{urlsplit(config.objects).netloc}")
    fields = _signed(parts.netloc, parts.path, region, keys)
    try:
        async with session.get(f"{parts.geturl()}?lifecycle=", headers=fields) as response:
            text = await response.text()
    except (aiohttp.ClientError, OSError) as error:
        return note(config.objects, f"{_LIFECYCLE} cannot be checked: {error}", _ADD_RULE)
    if response.status in {403, 501}:
        reason = f"{_LIFECYCLE} cannot be checked: status {response.status}"
        return note(config.objects, reason, _ADD_RULE)
    for rule in _RULE.findall(text) if response.status == 200 else ():
        if "AbortIncompleteMultipartUpload" in rule and "Enabled" in rule:
            return ok(config.objects, f"has {_LIFECYCLE}")
    return wrong(config.objects, f"has not {_LIFECYCLE}: they are paid for ever", _ADD_RULE)


def _signed(host: str, path: str, region: str, keys: dict[str, str]) -> dict[str, str]:
    """Return the fields that sign ``GET path?lifecycle=`` (AWS Signature Version 4)."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    fields = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": now}
    if keys.get("session_token"):
        fields["x-amz-security-token"] = keys["session_token"]
    names, lines = ";".join(fields), "".join(f"{key}:{text}\n" for key, text in fields.items())
    request = f"GET\n{path}\nlifecycle=\n{lines}\n{names}\n{empty}"
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{keys['secret_access_key']}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashed}".encode()
    signature = hmac.new(key, text, hashlib.sha256).hexdigest()
    credential = f"Credential={keys['access_key_id']}/{scope}"
    signing = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return {**fields, "authorization": signing}


async def _redis(where: str, config: ClusterConfig) -> Finding:
    trust = redis_trust(config.state, config.ca_file)
    client = Redis.from_url(
        config.state, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, **trust
    )
    try:
        started = time.monotonic()
        await client.ping()
        milliseconds = (time.monotonic() - started) * 1000
    except (RedisError, OSError) as error:
        fix = "start Redis there, or correct [cluster] state"
        return wrong(where, f"does not answer: {error}", fix)
    finally:
        await client.aclose()
    return ok(where, f"answers (after {milliseconds:.0f} ms)")


async def _mirror(session: aiohttp.ClientSession, url: str) -> Finding:
    try:
        async with session.get(f"{url}/healthz") as response:
            if response.status == 200:
                return ok(url, "answers")
            reason = f"answers with status {response.status}"
    except (aiohttp.ClientError, OSError) as error:
        reason = f"cannot be reached: {str(error) or 'no answer in time'}"
    return wrong(url, reason, "start the mirror there, or correct [cluster] peers and advertise")


async def _name(peer: str) -> Finding:
    host, _, port = peer.removeprefix(_DNS).rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM
        )
    except OSError as error:
        return wrong(peer, f"has no addresses: {error.strerror}", "correct [cluster] peers")
    addresses = sorted({str(each[4][0]) for each in found})
    return ok(peer, f"is {', '.join(addresses)}")
