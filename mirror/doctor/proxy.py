"""NO_PROXY by the rules of Docker."""

from mirror.upstream.proxies import NoProxy


def goes_direct(no_proxy: str, host: str, port: int) -> bool:
    """Whether a client with this NO_PROXY reaches ``host`` without its proxy."""
    return NoProxy(no_proxy).covers(host, port)
