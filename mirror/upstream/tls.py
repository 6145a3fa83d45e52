"""The certificate authorities (CAs) that are trusted for an upstream."""

import ssl
from functools import cache
from pathlib import Path


def trusting(ca_files: tuple[str, ...]) -> ssl.SSLContext:
    """Return a TLS context that trusts the CAs of the system and those in the files.

    A changed file is read again.

    Raises:
        OSError: a file cannot be read or contains no certificate (``ssl.SSLError`` is an OSError).
    """
    return _tls(ca_files, tuple(Path(file).stat().st_mtime_ns for file in ca_files))


@cache  # a context costs 20 ms, and most upstreams use the same one
def _tls(ca_files: tuple[str, ...], _changed: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in ca_files:
        context.load_verify_locations(cafile=file)
    return context
