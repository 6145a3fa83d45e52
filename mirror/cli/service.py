"""Commands for the machine of the mirror: its service, a token for changes, the CA of its proxy."""

import re
import shutil
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from mirror import clients
from mirror.cli.options import CacheOption, ConfigOption, command_group, settings
from mirror.http.token import create_token
from mirror.store.local.layout import Layout
from mirror.user_error import UserError

app = command_group()

#: Directories that the service cannot see: ProtectHome and PrivateTmp of the unit.
_HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
_CONFIGURATION: Final = "etc/mirror/mirror.toml"
_USER: Final = "etc/sysusers.d/mirror.conf"
_UNIT: Final = "etc/systemd/system/mirror.service"
_PACKAGED: Final = "usr/lib/systemd/system/mirror.service"
_PLACE: Final = "/opt/mirror/bin/mirror"  # in the unit of config/systemd
_SETTING: Final = re.compile(r"^(?=[a-z_]+ = )", re.MULTILINE)


def deployed(name: str) -> str:
    """Return a file of ``config/`` that is part of the wheel, too; ``name`` is its last part."""
    packaged = resources.files("mirror.cli") / "deployed" / name
    if packaged.is_file():
        return packaged.read_text()
    (file,) = (Path(__file__).parents[2] / "config").rglob(name)  # a checkout
    return file.read_text()


def unit(program: str) -> str:
    return deployed("mirror.service").replace(_PLACE, program)


def configuration() -> str:
    """Return ``mirror.toml`` with each key as a comment: a later default is not held back."""
    return _SETTING.sub("#", deployed("mirror.toml"))


@app.command("install-service", rich_help_panel="Mirror")
def install_service(
    root: Annotated[
        Path, typer.Option("--root", help="Root of the files, e.g. a mounted image.")
    ] = Path("/"),
    program: Annotated[
        Path | None, typer.Option("--program", help="The mirror to run [default: this one].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
) -> None:
    """Make this installation a service of systemd: its user, unit and configuration."""
    if (root / _PACKAGED).exists():
        raise UserError("the Debian package has installed the service: systemctl status mirror")
    wanted = {
        _USER: deployed("mirror.sysusers"),
        _CONFIGURATION: configuration(),
        _UNIT: unit(str(_visible(program or _this_program()))),
    }
    start = "restart" if (root / _UNIT).exists() else "enable --now"
    changed = [name for name, text in wanted.items() if _install(root / name, text, dry_run)]
    _run(["systemd-sysusers", f"--root={root}", Path(_USER).name], dry_run)
    if root == Path("/") and Path("/run/systemd/system").exists():
        _run(["systemctl", "daemon-reload"], dry_run)
    if _UNIT in changed:
        print(f"next: systemctl {start} mirror")


def _this_program() -> Path:
    program = Path(sys.prefix, "bin/mirror")
    if not program.exists():
        raise UserError(f"{program} does not exist: install the mirror with pipx, uv or in a venv")
    _visible(Path(sys.base_prefix))  # the interpreter that uv may have brought
    return program


def _visible(path: Path) -> Path:
    hidden = next((top for top in _HIDDEN if path.is_relative_to(top)), None)
    if hidden is not None:
        raise UserError(
            f"{path} is below {hidden}, which the service cannot see: install the mirror for all "
            "users, with `pipx install --global`, or in /opt/mirror"
        )
    return path


def _install(path: Path, text: str, dry_run: bool) -> bool:
    """Write a file and say so; return whether it changes."""
    former = path.read_text() if path.exists() else None
    keeps = former == text or (former is not None and path.match(_CONFIGURATION))
    done = "keep" if keeps else "write" if former is None else "replace"
    _say(f"{done} {path}", dry_run)
    if keeps or dry_run:
        return not keeps
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; run it as root") from error
    return True


def _say(action: str, dry_run: bool) -> None:
    print(f"would {action}" if dry_run else action, flush=True)


def _run(command: list[str], dry_run: bool) -> None:
    _say(f"run {' '.join(command)}", dry_run)
    if dry_run:
        return
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed: this machine has no systemd")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise UserError(f"{command[0]} failed: {done.stderr.strip()}")


@app.command(rich_help_panel="Mirror")
def token(
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Allow no changes by HTTP any more.")
    ] = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Print a new token that allows changes on the status page and by its API.

    A former token is not valid any more, nor is a session that began with it.
    """
    directory = settings(config, cache_dir).cache.directory.absolute()
    from mirror.admin.client import check_owner  # noqa: PLC0415  # late: loads half of the server

    check_owner(directory)
    file = Layout(directory).token
    try:
        if revoke:
            file.unlink(missing_ok=True)
        else:
            print(create_token(file))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


@app.command("ca", rich_help_panel="Clients")
def ca(config: ConfigOption = None, cache_dir: CacheOption = None) -> None:
    """Print the CA certificate of proxy mode (PEM), and how to make clients trust it."""
    configured = settings(config, cache_dir)
    # Imported late: other commands do not need it.
    from mirror.ca import ensure_authority  # noqa: PLC0415

    directory, former = configured.proxy.authority_directories(configured.cache.directory)
    name = f"mirror CA ({socket.gethostname()})"
    # This command may run as another user than the mirror, which moves the CA when it starts.
    authority = ensure_authority(directory, name, former=former, move=False)
    print("\n".join(f"# {line}" for line in clients.trusting()), file=sys.stderr)
    if not configured.proxy.listen:
        print("# Proxy mode is off: [proxy] listen is empty.", file=sys.stderr)
    sys.stdout.write(authority.public_pem().decode())
