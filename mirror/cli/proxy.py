"""The command for proxy mode: prints the CA that clients have to trust."""

import socket
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from mirror import clients
from mirror.config import Config, ConfigError, load

_FAILED: Final = 1
_USAGE: Final = 2

app = typer.Typer(rich_markup_mode=None)


@app.command("ca")
def ca(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file (or $MIRROR_CONFIG, /etc/mirror/mirror.toml)."),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Cache directory.")] = None,
) -> None:
    """Print the CA certificate of proxy mode (PEM), and how to make clients trust it."""
    settings = _load(config, cache_dir)
    # Imported late: other commands do not need them.
    from mirror.ca.errors import AuthorityError  # noqa: PLC0415
    from mirror.ca.files import ensure_authority  # noqa: PLC0415

    directory = settings.proxy.authority_directory(settings.cache.directory)
    try:
        authority = ensure_authority(directory.absolute(), f"mirror CA ({socket.gethostname()})")
    except AuthorityError as error:
        _fail(str(error), _FAILED)
    print("\n".join(f"# {line}" for line in clients.trusting()), file=sys.stderr)
    if not settings.proxy.listen:
        print("# Proxy mode is off: [proxy] listen is empty.", file=sys.stderr)
    sys.stdout.write(authority.public_pem().decode())


def _load(file: Path | None, cache_dir: Path | None) -> Config:
    try:
        return load(file, {"cache": {"directory": str(cache_dir)} if cache_dir else {}})
    except ConfigError as error:
        _fail("\n".join(error.problems), _USAGE)


def _fail(message: str, code: int) -> NoReturn:
    print("\n".join(f"mirror: {line}" for line in message.splitlines()), file=sys.stderr)
    raise typer.Exit(code)
