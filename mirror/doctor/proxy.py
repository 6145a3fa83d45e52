"""NO_PROXY as Docker reads it."""

from mirror.upstream.proxies import NoProxy


def goes_direct(no_proxy: str, host: str, port: int) -> bool:
    """Whether a client with this NO_PROXY asks ``host`` itself and not its proxy."""
    return NoProxy(no_proxy).covers(host, port)
