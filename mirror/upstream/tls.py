"""Which certificate authorities an upstream's certificate may come from."""

import ssl
from functools import cache
from pathlib import Path


def trusting(ca_files: tuple[str, ...]) -> ssl.SSLContext:
    """TLS that trusts the system's authorities and those in the files, as they are now.

    Raises:
        OSError: one cannot be read, or holds no certificate (``ssl.SSLError`` is one).
    """
    return _tls(ca_files, tuple(Path(file).stat().st_mtime_ns for file in ca_files))


@cache  # 20 ms each, and most upstreams have the same
def _tls(ca_files: tuple[str, ...], _changed: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in ca_files:
        context.load_verify_locations(cafile=file)
    return context
