"""``[cluster]``: the object store and the shared state of several mirrors."""

import re
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from mirror.config.addresses import checked_proxy, checked_url
from mirror.config.fields import Network, ReadableFile, SizeField, Table, Timeout, size, time, where

_OBJECTS: Final = re.compile(r"(?:s3|gs|az)://[^/?#@\s]+(?:/[^?#\s]*)?|file:///[^?#\s]+", re.ASCII)
_DNS: Final = re.compile(r"dns:(?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?:([0-9]{1,5})", re.ASCII)
_MAX_PORT: Final = 65535
_LEAST_SECRET: Final = 32  # characters


def _checked_objects(url: str) -> str:
    if url and not _OBJECTS.fullmatch(url):
        raise ValueError(
            "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX (the prefix may be "
            "left out), or file:///DIRECTORY on a file system that all mirrors mount"
        )
    return url.rstrip("/")


def _checked_endpoint(url: str) -> str:
    return checked_url(checked_proxy(url)) if url else url


def _checked_state(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"redis", "rediss"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if url and (not usable or parts.query or not re.fullmatch(r"/?[0-9]*", parts.path)):
        raise ValueError("the address of Redis or Valkey such as redis://redis.example.com:6379/0")
    return url


def _checked_peer(text: str) -> str:
    named = _DNS.fullmatch(text)
    if named is not None and 0 < int(named[1]) <= _MAX_PORT:
        return text
    try:
        return checked_url(text)
    except ValueError as error:
        raise ValueError(
            "the address of a mirror such as http://10.1.2.3:5000, or a name with the addresses "
            "of several such as dns:mirrors.example.com:5000"
        ) from error


def _checked_advertise(url: str) -> str:
    return checked_url(url) if url else url


def _checked_secret(file: str) -> str:
    if file and len(_secret(file)) < _LEAST_SECRET:
        raise ValueError(
            f"a file with {_LEAST_SECRET} characters or more, such as of `openssl rand -hex 32`"
        )
    return file


def _secret(file: str) -> str:
    return Path(file).read_text(encoding="utf-8").strip()


class ClusterConfig(Table):
    """What several mirrors share."""

    objects: Annotated[str, AfterValidator(_checked_objects)] = ""
    endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = ""
    region: str = ""
    credentials_file: ReadableFile = ""
    max_size: Annotated[
        SizeField,
        where(lambda size: size.share is None, "a size such as 500GiB or 2TiB, or 0 for no limit"),
    ] = size("0")
    first_byte_timeout: Timeout = time("500ms")
    redirect_networks: tuple[Network, ...] = ()
    redirect_endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = ""
    state: Annotated[str, AfterValidator(_checked_state)] = ""
    state_timeout: Timeout = time("400ms")
    secret_file: Annotated[ReadableFile, AfterValidator(_checked_secret)] = ""
    ca_file: ReadableFile = ""
    peers: tuple[Annotated[str, AfterValidator(_checked_peer)], ...] = ()
    advertise: Annotated[str, AfterValidator(_checked_advertise)] = ""

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        needing = ("endpoint", "region", "credentials_file", "redirect_endpoint")
        alone = [key for key in needing if getattr(self, key)]
        alone += ["max_size"] if self.max_size.bytes else []
        alone += ["redirect_networks"] if self.redirect_networks else []
        if alone and not self.objects:
            raise ValueError(f"{alone[0]} with objects")
        scheme = self.objects.partition(":")[0]
        if (self.endpoint or self.region or self.redirect_endpoint) and scheme != "s3":
            raise ValueError(
                "endpoint, region and redirect_endpoint with objects that begins with s3://"
            )
        if self.redirect_networks and scheme == "file":
            raise ValueError(
                "redirect_networks with objects that begins with s3://, gs:// or az://"
            )
        if self.credentials_file and scheme not in {"s3", "gs"}:
            raise ValueError("credentials_file with objects that begins with s3:// or gs://")
        return self

    @model_validator(mode="after")
    def _check_peers(self) -> Self:
        if self.ca_file and not (self.objects or self.state or self.peers):
            raise ValueError("ca_file with objects, state or peers")
        if bool(self.peers) and not (self.advertise and self.secret_file):
            raise ValueError("peers with advertise and secret_file")
        if self.advertise and not (self.peers or self.state):
            raise ValueError("advertise with peers or state")
        if self.advertise and not self.secret_file:
            raise ValueError("advertise with secret_file")
        return self

    def secret(self) -> bytes:
        """Return the secret that all mirrors share.

        Raises:
            OSError: ``secret_file`` cannot be read.
        """
        return _secret(self.secret_file).encode()
