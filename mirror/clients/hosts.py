"""``hosts.toml``: one file per registry, for containerd and for Docker with containerd's store.

Both send ``?ns=<registry>`` to a host that is not the registry itself, so the mirror's address is
the same for all (containerd, docs/hosts.md).
"""

from mirror.clients.address import is_loopback
from mirror.clients.snippet import HUB, File, Mirror, commented, quoted


def hosts_files(mirror: Mirror, directory: str) -> tuple[File, ...]:
    """Return a ``hosts.toml`` below ``directory`` for every upstream."""
    return tuple(
        commented(f"{directory}/{name}/hosts.toml", _lines(mirror, name))
        for name in mirror.upstreams
    )


def about_referrers(mirror: Mirror, newer: str, older: str) -> tuple[str, ...]:
    """Return advice about the capability ``referrers``, which ``older`` clients reject."""
    if mirror.referrers:
        return (f'Only for {newer} and later: {older} rejects a file with "referrers".',)
    return (
        f"{newer} and later looks for signatures and attestations at the registry itself with",
        f'this file; for it, add --referrers. {older} rejects a file with "referrers".',
    )


def _lines(mirror: Mirror, registry: str) -> list[str]:
    lines = [*_server(registry), f"[host.{quoted(mirror.address)}]"]
    capabilities = ["pull", "resolve", *(["referrers"] if mirror.referrers else [])]
    lines.append(f"  capabilities = [{', '.join(map(quoted, capabilities))}]")
    # Without dial_timeout an unreachable mirror costs 30 s per blob.
    lines.append('  dial_timeout = "3s"')
    if mirror.ca_file:
        lines.append(f"  ca = {quoted(mirror.ca_file)}")
    return lines


def _server(registry: str) -> list[str]:
    """Return the server to ask if the mirror cannot answer."""
    if registry == HUB:
        return ['server = "https://registry-1.docker.io"', ""]
    if is_loopback(registry.partition(":")[0]):
        return []  # the client itself knows whether to use http
    return [f"server = {quoted(f'https://{registry}')}", ""]
