"""The ``mirror`` command: ``serve``, ``check``, and the commands of the other modules."""

import atexit
from typing import Annotated, Any

import typer

from mirror import __version__, threads
from mirror.cli import cache, clients, images, policy, service
from mirror.cli.options import CacheOption, ConfigOption, command_group, settings
from mirror.config import Config, load
from mirror.config.dump import dump_toml
from mirror.metrics.multiprocess import shared_figures

app = command_group(
    help="A pull-through cache for container images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cache.app)  # ls, rm, stats, verify
app.add_typer(clients.app)  # client, doctor
app.add_typer(images.app)  # warm, export, import
app.add_typer(policy.app)  # block, unblock, blocks, release, policy
app.add_typer(service.app)  # install-service, token, ca


def main() -> None:
    app(prog_name="mirror")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mirror {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel="Mirror")
def serve(
    config: ConfigOption = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT, :PORT or unix:/PATH to listen on; may be repeated."),
    ] = None,
    cache_dir: CacheOption = None,
    max_size: Annotated[str | None, typer.Option(help="Cache size, e.g. 50GiB or 80%.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes on the same port; 0 = one per core.")
    ] = None,
) -> None:
    """Run the mirror until SIGTERM or Ctrl-C; SIGHUP reloads its configuration."""
    flags: dict[str, dict[str, Any]] = {"server": {}, "cache": {}}
    if listen:
        flags["server"]["listen"] = listen[0] if len(listen) == 1 else listen
    if cache_dir is not None:
        flags["cache"]["directory"] = str(cache_dir)
    if max_size is not None:
        flags["cache"]["max_size"] = max_size
    if workers is not None:
        flags["server"]["workers"] = workers
    configured = load(config, flags)

    def reread() -> Config:
        return load(config, flags)

    processes = configured.server.processes()
    with shared_figures(processes):
        # Imported late: other commands do not need the server.
        from mirror.logs import queue_output  # noqa: PLC0415
        from mirror.server import run  # noqa: PLC0415
        from mirror.workers.supervisor import supervise  # noqa: PLC0415

        atexit.register(queue_output().drain)  # runs after a traceback too
        if processes == 1:
            threads.run(run(configured, reread))
        else:
            supervise(configured, reread)


@app.command(rich_help_panel="Mirror")
def check(config: ConfigOption = None) -> None:
    """Print the configuration with its defaults, or its mistakes."""
    from mirror.server.reload import try_out  # noqa: PLC0415

    configured = settings(config)
    try_out(configured)
    print(dump_toml(configured))
