"""The clients of ``obstore``: address, credentials and time-outs."""

import configparser
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from obstore.store import from_url

from mirror.config.cluster import ClusterConfig

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_CONNECT: Final = timedelta(seconds=5)
#: obstore's limit for a whole download, which by default is 30 s; pauses have their own limit.
_WHOLE_DOWNLOAD: Final = timedelta(days=1)
#: For one request of an upload, which sends one part of the object.
_PART: Final = timedelta(minutes=5)
_PART_RETRIES: Final = 3


class Clients(NamedTuple):
    """Clients of one store: for downloads, for uploads, and for the addresses that are given out.

    Downloads are resumed elsewhere instead of being retried.  Clients with the same settings are
    equal.
    """

    reading: "ObjectStore"
    writing: "ObjectStore"
    signing: "ObjectStore"


def clients(config: ClusterConfig) -> Clients:
    """Return the clients of a configuration; they connect when they are first used."""
    keys = _keys(config)
    # Besides those of the system.
    trust = {"root_certificate": Path(config.ca_file).read_bytes()} if config.ca_file else {}
    client = partial(_client, config.objects, trust=trust)
    reading = signing = client(keys, _WHOLE_DOWNLOAD, retries=0)
    if config.redirect_endpoint:  # a signature covers the host
        seen = {**keys, "endpoint": config.redirect_endpoint}
        signing = client(seen, _WHOLE_DOWNLOAD, retries=0)
    writing = client(keys, _PART, retries=_PART_RETRIES)
    return Clients(reading, writing, signing)


def _client(
    url: str,
    keys: Mapping[str, Any],
    timeout: timedelta,
    *,
    retries: int,
    trust: Mapping[str, bytes],
) -> "ObjectStore":
    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    options: Any = {
        **trust,
        "allow_http": keys.get("endpoint", "").startswith("http:"),
        "connect_timeout": _CONNECT,
        "timeout": timeout,
    }
    retry: Any = {"max_retries": retries, "retry_timeout": timeout}
    settings: Any = keys
    return from_url(url, config=settings, client_options=options, retry_config=retry)


def _keys(config: ClusterConfig) -> dict[str, Any]:
    """Return the address and the credentials; obstore adds those of the environment."""
    scheme = config.objects.partition(":")[0]
    keys: dict[str, Any] = {"endpoint": config.endpoint} if config.endpoint else {}
    if config.region:
        keys["region"] = config.region
    if scheme == "s3":
        # TLS protects the bytes on the way, and the digest decides: no second hash for S3.
        keys["unsigned_payload"] = True
        keys["disable_bulk_delete"] = True  # not every S3 server has it
    if config.credentials_file and scheme == "gs":
        # The text, not the name: a client with other credentials is another client.
        keys["service_account_key"] = Path(config.credentials_file).read_text(encoding="utf-8")
    elif config.credentials_file:
        keys |= profile(config.credentials_file)
    return keys


def profile(file: str) -> dict[str, str]:
    """Return the keys of the default profile, as `aws configure` writes it.

    Raises:
        OSError, ValueError, configparser.Error: the file has none.
    """
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(file, encoding="utf-8")
    found = parser["default"] if parser.has_section("default") else {}
    wanted = {name: f"aws_{name}" for name in ("access_key_id", "secret_access_key")}
    for name in wanted.values():
        if name not in found:
            raise ValueError(f"{file} has no {name} below [default]")
    keys = {name: found[key] for name, key in wanted.items()}
    token = found.get("aws_session_token")
    return {**keys, "session_token": token} if token else keys
