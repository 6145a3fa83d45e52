"""Commands for clients: print their configuration, find out why one bypasses the mirror."""

import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from difflib import unified_diff
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mirror import clients, threads
from mirror.cli.options import ConfigOption, command_group, settings
from mirror.clients import File, Mirror, Snippet
from mirror.config import Config
from mirror.config.addresses import checked_url, lookup_outermost
from mirror.config.fields import masked
from mirror.config.upstreams import plain_upstreams
from mirror.user_error import ExitCode, UserError

app = command_group()
client_app = command_group(
    help="Print ready-to-paste configuration for a client.", no_args_is_help=True
)
app.add_typer(client_app, name="client", rich_help_panel="Clients")


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


ClusterOption = Annotated[
    bool,
    typer.Option(
        "--cluster",
        help="Check the object store, Redis and the other mirrors of [cluster] instead.",
    ),
]


def _directory(path: Path | None) -> Path | None:
    if path is not None and str(path).startswith("-"):  # the next option: DIR is missing
        raise typer.BadParameter("needs a directory; / is this machine")
    return path


WriteOption = Annotated[
    Path | None,
    typer.Option(
        "--write",
        metavar="DIR",
        callback=_directory,
        help="Write the files below this directory; / is this machine.",
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Change an existing daemon.json without asking.")
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
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """daemon.json for Docker, or hosts.toml for its containerd image store."""
    configured = settings(config)
    if proxy is not None:
        forms = {
            ProxyForm.DAEMON: clients.docker_proxy,
            ProxyForm.SYSTEMD: clients.docker_proxy_unit,
        }
        seen = _seen(configured, url or _proxy_url(configured), ca_file)
        _show(forms[proxy], seen, write, yes=yes)
        return
    by_store = {ImageStore.CLASSIC: clients.docker, ImageStore.CONTAINERD: clients.docker_hosts}
    mirror = replace(_mirror(configured, url, ca_file), referrers=referrers)
    _show(by_store[store], mirror, write, yes=yes)


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


@app.command("doctor", rich_help_panel="Clients")
def doctor(
    url: UrlOption = None,
    root: RootOption = Path("/"),
    config: ConfigOption = None,
    cluster: ClusterOption = False,
) -> None:
    """Find out why a client bypasses the mirror: check this machine's clients, and ask the mirror
    as they would.

    Exits with 1 if something is wrong.
    """
    configured = settings(config)
    if cluster:
        from mirror.cluster import check_installed  # noqa: PLC0415  # only for a cluster

        check_installed()
        from mirror.doctor.cluster import examine_cluster  # noqa: PLC0415  # an extra

        report = threads.run(examine_cluster(configured.cluster))
    else:
        # Imported late: `client` does not need the HTTP modules.
        from mirror.doctor import containerd_version, examine  # noqa: PLC0415

        # Another root has its own programs, which are not run.
        version = containerd_version() if root == Path("/") else ""
        own, home = url or _url(configured), str(Path.home())
        report = threads.run(examine(root, url, own, home, version))
    print("\n".join(report.lines()))
    if not report.healthy:
        raise typer.Exit(ExitCode.FAILED)


def _show(
    snippet_for: Callable[[Mirror], Snippet],
    mirror: Mirror,
    write: Path | None,
    *,
    yes: bool = False,
) -> None:
    snippet = snippet_for(mirror)
    print("\n".join(f"# {line}" for line in snippet.advice), file=sys.stderr)
    if write is None:
        sys.stdout.write(snippet.text)
        return
    try:
        for path in _written(snippet, mirror, write, yes=yes):
            print(path)
    except OSError as error:
        text = f"{error.filename}: cannot be read or written: {error.strerror}"
        raise UserError(text) from error


def _written(snippet: Snippet, mirror: Mirror, directory: Path, *, yes: bool) -> list[Path]:
    def place(name: str) -> Path:
        return directory / name.removeprefix("/")

    contents = {place(file.path): _content(file, place(file.path)) for file in snippet.files}
    mergeable = {place(file.path) for file in snippet.files if file.merged is not None}
    if snippet.ca_copy:
        contents[place(snippet.ca_copy)] = Path(mirror.ca_file).read_bytes()
    for path, content in contents.items():
        if path.exists() and (former := path.read_bytes()) != content:
            if path not in mergeable:
                raise UserError(f"{path} exists already: merge the output without --write by hand")
            _agree(path, former.decode(), content.decode(), yes=yes)
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            _replace(path, content)
    return list(contents)


def _content(file: File, path: Path) -> bytes:
    """Return what a file will hold: its text, merged with the existing file if it can be."""
    if file.merged is None or not path.exists():
        return file.text.encode()
    try:
        return file.merged(path.read_text(encoding="utf-8")).encode()
    except ValueError as error:
        raise UserError(f"{path}: cannot be changed: {error}; correct it by hand first") from error


def _agree(path: Path, former: str, content: str, *, yes: bool) -> None:
    """Show what changes in a file, and ask whether to write it unless ``yes``.

    Raises:
        UserError: the answer is no, or there is none.
    """
    lines, name = (former.splitlines(), content.splitlines()), str(path)
    for line in unified_diff(lines[0], lines[1], name, name, lineterm=""):
        print(line, file=sys.stderr)
    try:
        agreed = yes or typer.confirm(f"Write {path}?", err=True)
    except typer.Abort:  # no terminal, and no answer
        print(file=sys.stderr)
        agreed = False
    if not agreed:
        raise UserError(f"{path} is unchanged; --yes changes it without asking")


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once, with the mode of the former one: half a daemon.json stops Docker."""
    path = path.resolve()  # not the link to it
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as new:
        new.write(content)
    try:
        Path(new.name).chmod(path.stat().st_mode if path.exists() else 0o644)
        Path(new.name).replace(path)
    except OSError:
        Path(new.name).unlink()
        raise


def _seen(config: Config, url: str, ca_file: Path | None) -> Mirror:
    return Mirror(
        url,
        tuple(config.enabled()),
        config.default_upstream(),
        str(ca_file.absolute()) if ca_file else "",
        plain_upstreams=plain_upstreams(config.enabled()),
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
