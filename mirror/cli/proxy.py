"""The command for proxy mode: prints the CA that clients have to trust."""

import socket
import sys

from mirror import clients
from mirror.cli.options import CacheOption, ConfigOption, command_group, settings

app = command_group()


@app.command("ca", rich_help_panel="Clients")
def ca(config: ConfigOption = None, cache_dir: CacheOption = None) -> None:
    """Print the CA certificate of proxy mode (PEM), and how to make clients trust it."""
    configured = settings(config, cache_dir)
    # Imported late: other commands do not need it.
    from mirror.ca.files import ensure_authority  # noqa: PLC0415

    directory, former = configured.proxy.authority_directories(configured.cache.directory)
    name = f"mirror CA ({socket.gethostname()})"
    # This command may run as another user than the mirror, which moves the CA when it starts.
    authority = ensure_authority(directory, name, former=former, move=False)
    print("\n".join(f"# {line}" for line in clients.trusting()), file=sys.stderr)
    if not configured.proxy.listen:
        print("# Proxy mode is off: [proxy] listen is empty.", file=sys.stderr)
    sys.stdout.write(authority.public_pem().decode())
