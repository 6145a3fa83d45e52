"""Commands for clients: print their configuration, find out why one bypasses the mirror."""

import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mirror import clients, threads
from mirror.cli.options import ConfigOption, command_group, settings
from mirror.clients import Mirror, Snippet
from mirror.config import Config
from mirror.config.addresses import checked_url, lookup_outermost
from mirror.config.fields import masked
from mirror.user_error import ExitCode, UserError

app = command_group()
client_app = command_group(
    help="Print ready-to-paste configuration for a client.", no_args_is_help=True
)
app.add_typer(client_app, name="client")


class ImageStore(StrEnum):
    """Docker's image store, which decides the configuration that it reads."""

    CLASSIC = "classic"
    CONTAINERD = "containerd"


class ProxyForm(StrEnum):
    """How to configure Docker's proxy."""

    DAEMON = "daemon"
    SYSTEMD = "systemd"


def _mirror_url(url: str | None) -> str | None:
    try:
        # Docker accepts for a mirror the same URLs as the mirror for an upstream.
        return None if url is None else checked_url(url)
    except ValueError as error:
        raise typer.BadParameter(f"found {masked(url or '')!r}, allowed: {error}") from error


UrlOption = Annotated[
    str | None, typer.Option("--url", callback=_mirror_url, help="URL of the mirror for clients.")
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca-file", help="The CA of an https mirror, as a path on the client's machine."),
]
WriteOption = Annotated[
    Path | None, typer.Option("--write", help="Write the files below this directory.")
]
StoreOption = Annotated[
    ImageStore,
    typer.Option("--store", help="containerd: hosts.toml for every registry (Engine 28)."),
]
ReferrersOption = Annotated[
    bool,
    typer.Option(
        "--referrers",
        help="For containerd 2.2, Docker 29.1 and later; older ones reject the hosts.toml.",
    ),
]
ProxyOption = Annotated[
    ProxyForm | None,
    typer.Option("--proxy", help="Use proxy mode, for every registry: daemon.json or unit."),
]
RootOption = Annotated[
    Path, typer.Option("--root", help="Root of the clients' files, e.g. a mounted image.")
]


@client_app.command("docker")
def client_docker(
    url: UrlOption = None,
    ca_file: CaOption = None,
    store: StoreOption = ImageStore.CLASSIC,
    referrers: ReferrersOption = False,
    proxy: ProxyOption = None,
    write: WriteOption = None,
    config: ConfigOption = None,
) -> None:
    """daemon.json for Docker, or hosts.toml for its containerd image store."""
    configured = settings(config)
    if proxy is not None:
        forms = {
            ProxyForm.DAEMON: clients.docker_proxy,
            ProxyForm.SYSTEMD: clients.docker_proxy_unit,
        }
        _show(forms[proxy], _seen(configured, url or _proxy_url(configured), ca_file), write)
        return
    by_store = {ImageStore.CLASSIC: clients.docker, ImageStore.CONTAINERD: clients.docker_hosts}
    mirror = replace(_mirror(configured, url, ca_file), referrers=referrers)
    _show(by_store[store], mirror, write)


@client_app.command("containerd")
def client_containerd(
    url: UrlOption = None,
    ca_file: CaOption = None,
    referrers: ReferrersOption = False,
    write: WriteOption = None,
    config: ConfigOption = None,
) -> None:
    """hosts.toml for containerd, Kubernetes and nerdctl."""
    mirror = replace(_mirror(settings(config), url, ca_file), referrers=referrers)
    _show(clients.containerd, mirror, write)


def _client(name: str, snippet_for: Callable[[Mirror], Snippet], text: str) -> None:
    @client_app.command(name, help=text)
    def show(
        url: UrlOption = None,
        ca_file: CaOption = None,
        write: WriteOption = None,
        config: ConfigOption = None,
    ) -> None:
        _show(snippet_for, _mirror(settings(config), url, ca_file), write)


_client("k3s", clients.k3s, "registries.yaml for k3s and RKE2.")
_client("podman", clients.podman, "registries.conf for Podman, Buildah, Skopeo and CRI-O.")
_client("buildkit", clients.buildkit, "buildkitd.toml for BuildKit and buildx.")


@app.command("doctor")
def doctor(
    url: UrlOption = None,
    root: RootOption = Path("/"),
    config: ConfigOption = None,
) -> None:
    """Find out why a client bypasses the mirror: check this machine's clients, and ask the mirror
    as they would.

    Exits with 1 if something is wrong.
    """
    configured = settings(config)
    # Imported late: `client` does not need the HTTP modules.
    from mirror.doctor import containerd_version, examine  # noqa: PLC0415

    # Another root has its own programs, which are not run.
    version = containerd_version() if root == Path("/") else ""
    report = threads.run(examine(root, url, url or _url(configured), str(Path.home()), version))
    print("\n".join(report.lines()))
    if not report.healthy:
        raise typer.Exit(ExitCode.FAILED)


def _show(snippet_for: Callable[[Mirror], Snippet], mirror: Mirror, write: Path | None) -> None:
    snippet = snippet_for(mirror)
    print("\n".join(f"# {line}" for line in snippet.advice), file=sys.stderr)
    if write is None:
        sys.stdout.write(snippet.text)
        return
    try:
        for path in _written(snippet, mirror, write):
            print(path)
    except OSError as error:
        text = f"{error.filename}: cannot be read or written: {error.strerror}"
        raise UserError(text) from error


def _written(snippet: Snippet, mirror: Mirror, directory: Path) -> list[Path]:
    contents = {file.path: file.text.encode() for file in snippet.files}
    if snippet.ca_copy:
        contents[snippet.ca_copy] = Path(mirror.ca_file).read_bytes()
    files = {directory / name.removeprefix("/"): content for name, content in contents.items()}
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise UserError(f"{path} exists already: merge the output without --write by hand")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(files)


def _seen(config: Config, url: str, ca_file: Path | None) -> Mirror:
    return Mirror(
        url,
        tuple(config.enabled()),
        config.default_upstream(),
        str(ca_file.absolute()) if ca_file else "",
    )


def _mirror(config: Config, url: str | None, ca_file: Path | None) -> Mirror:
    mirror = _seen(config, url or _url(config), ca_file)
    if mirror.ca_file and mirror.plain:
        raise typer.BadParameter(f"a CA is for an https mirror, and this one is {mirror.address}")
    return mirror


def _proxy_url(config: Config) -> str:
    address = lookup_outermost(config.proxy.addresses())
    if address is None:
        text = "proxy mode is off: set [proxy] listen, or give its URL for clients with --url"
        raise UserError(text, ExitCode.USAGE)
    return clients.reachable_url(address.host, address.port, socket.gethostname())


def _url(config: Config) -> str:
    address = lookup_outermost(config.server.addresses())
    if address is None:
        text = "the mirror listens on a unix socket only: give its URL for clients with --url"
        raise UserError(text, ExitCode.USAGE)
    tls = bool(config.server.tls_certificate)
    return clients.reachable_url(address.host, address.port, socket.gethostname(), tls=tls)
