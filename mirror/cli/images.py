"""Commands that pull, export and import images.  They print, and decide nothing else."""

import json
import platform as machine
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.filesize import decimal

from mirror import threads
from mirror.cli.progress import ByteProgress
from mirror.config import Config, ConfigError, load
from mirror.logs import configure
from mirror.oci.image_name import ImageName
from mirror.oci.platform import InvalidPlatform, Platform

if TYPE_CHECKING:
    from mirror.registry_client.pull import Pulled

R = TypeVar("R")

_FAILED = 1
_USAGE = 2
_INTERRUPTED = 130  # the exit status of shells after Ctrl-C

app = typer.Typer(rich_markup_mode=None)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file (or $MIRROR_CONFIG, /etc/mirror/mirror.toml)."),
]
CacheOption = Annotated[Path | None, typer.Option(help="Cache directory.")]
PlatformOption = Annotated[
    list[str] | None,
    typer.Option("--platform", help="os/arch[/variant]; may be repeated. Default: this machine's."),
]
AllOption = Annotated[
    bool, typer.Option("--all-platforms", help="Everything in an image, attestations too.")
]
FileOption = Annotated[
    str | None, typer.Option("--file", help="A list, one image per line; - for stdin.")
]
ParallelOption = Annotated[int, typer.Option(min=1, help="Number of downloads at once.")]


@app.command()
def warm(
    images: Annotated[
        list[str] | None, typer.Argument(help="Names as docker pull takes them.")
    ] = None,
    platform: PlatformOption = None,
    all_platforms: AllOption = False,
    file: FileOption = None,
    parallel: ParallelOption = 4,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pull images into the cache; after Ctrl-C the same command continues.

    Exits with 1 if an image failed.
    """
    settings = _settings(config, cache_dir)
    platforms = _platforms(platform or [], everything=all_platforms)
    names = _names(images or [], file)
    from mirror.cli.images_progress import ImagesProgress  # noqa: PLC0415  # late: HTTP
    from mirror.transfer.warm import excess  # noqa: PLC0415
    from mirror.transfer.warm import warm as pull  # noqa: PLC0415

    progress = ImagesProgress()
    result = _run(pull(settings, names, platforms, parallel, progress), progress)
    print(_document(result) if as_json else _summary(result))
    if warning := excess(settings, result):
        print(f"mirror: {warning}", file=sys.stderr)
    if any(pulled.reason for pulled in result):
        raise typer.Exit(_FAILED)


@app.command("export")
def export_images(
    output: Annotated[
        str, typer.Option("-o", "--output", help="A file (tar), a directory, or - for stdout.")
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Names as docker pull takes them.")
    ] = None,
    platform: PlatformOption = None,
    all_platforms: AllOption = False,
    file: FileOption = None,
    parallel: ParallelOption = 4,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Write images as an OCI image layout; images that are not cached are pulled first."""
    settings = _settings(config, cache_dir)
    platforms = _platforms(platform or [], everything=all_platforms)
    names = _names(images or [], file)
    if output == "-" and sys.stdout.isatty():
        _fail("refusing to write a tar to a terminal: name a file with -o", _USAGE)
    from mirror.cli.images_progress import ImagesProgress  # noqa: PLC0415
    from mirror.transfer.export import export  # noqa: PLC0415  # late: HTTP

    bars, bar = ImagesProgress(), ByteProgress("writing")
    plans = _run(export(settings, names, platforms, parallel, output, bars, bar), nullcontext())
    for plan in plans:
        size = decimal(plan.blob_bytes)
        print(f"{plan.wanted.full_name}: {size}, {plan.root.digest}", file=sys.stderr)


@app.command("import")
def import_images(
    source: Annotated[str, typer.Argument(help="A tar, a directory, or - for stdin.")],
    called: Annotated[
        str | None, typer.Option("--as", help="Name of the image, if there is only one.")
    ] = None,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Load images into the cache from an OCI image layout; a mirror may run meanwhile.

    Exits with 1 if an image is incomplete or has no name.
    """
    settings = _settings(config, cache_dir)
    name = _names([called], None)[0] if called is not None else None
    if source == "-" and sys.stdin.isatty():
        _fail("cannot read a tar from a terminal: name a file, or pipe one in", _USAGE)
    from mirror.transfer.imports import import_layout  # noqa: PLC0415  # late, as above

    progress = ByteProgress("importing")
    result = _run(import_layout(settings, source, name, progress), progress)
    if as_json:
        print(json.dumps({"images": [image.document() for image in result]}, indent=2))
    else:
        for image in result:
            told = f"failed: {image.reason}" if image.reason else decimal(image.size)
            print(f"{image.name}: {told}")
    if any(image.reason for image in result):
        raise typer.Exit(_FAILED)


def _run(work: Coroutine[Any, Any, R], progress: AbstractContextManager[object]) -> R:
    """Run the work, and show its progress; Ctrl-C ends it with one line."""
    from mirror.admin.errors import OperateError  # noqa: PLC0415

    try:
        with progress:
            # Only now, so that log lines go above the bars: a mirror in this process may log
            # errors.
            configure("warning", "text", access=False)
            return threads.run(work)
    except KeyboardInterrupt:
        _fail(
            "interrupted: what was downloaded stays; run the same command to continue", _INTERRUPTED
        )
    except (OperateError, threads.NoThreadError) as error:
        _fail(str(error), _FAILED)


def _names(typed: list[str], file: str | None) -> list[ImageName]:
    from mirror.admin.errors import OperateError  # noqa: PLC0415
    from mirror.cli.image_list import NamesError, listed_images, typed_images  # noqa: PLC0415

    if not typed and file is None:
        _fail("name an image, such as alpine:3.20, or a list of them with --file", _USAGE)
    try:
        names = typed_images(typed)
        if file is not None:
            names += listed_images("stdin", sys.stdin) if file == "-" else listed_images(file)
    except NamesError as error:
        _fail(str(error), _USAGE)
    except OperateError as error:
        _fail(str(error), _FAILED)
    return names


def _platforms(texts: list[str], *, everything: bool) -> list[Platform]:
    """The named platforms; an empty list for all, this machine's by default."""
    if texts and everything:
        _fail("either --platform or --all-platforms, not both", _USAGE)
    try:
        named = [Platform.parse(part) for text in texts for part in text.split(",")]
    except InvalidPlatform as error:
        _fail(str(error), _USAGE)
    return named if named or everything else [Platform.of("linux", machine.machine())]


def _summary(result: "Sequence[Pulled]") -> str:
    failed = [pulled for pulled in result if pulled.reason]
    fetched = decimal(sum(pulled.fetched for pulled in result))
    found = decimal(sum(pulled.found for pulled in result))
    images = f"{len(result)} image{'' if len(result) == 1 else 's'}"
    lines = [f"{images}: {fetched} fetched, {found} were cached; {len(failed)} failed"]
    lines += [f"failed: {pulled.wanted.typed}: {pulled.reason}" for pulled in failed]
    return "\n".join(lines)


def _document(result: "Sequence[Pulled]") -> str:
    images = [
        {
            "image": pulled.wanted.typed,
            "name": pulled.wanted.full_name,
            "digest": str(pulled.plan.root.digest) if pulled.plan else None,
            "bytes": pulled.plan.blob_bytes if pulled.plan else None,
            "fetched_bytes": pulled.fetched,
            "found_bytes": pulled.found,
            "stale": pulled.plan is not None and pulled.plan.stale,
            "error": pulled.reason or None,
        }
        for pulled in result
    ]
    totals = {
        "fetched_bytes": sum(pulled.fetched for pulled in result),
        "found_bytes": sum(pulled.found for pulled in result),
        "failed": sum(bool(pulled.reason) for pulled in result),
    }
    return json.dumps({"images": images, **totals}, indent=2)


def _settings(file: Path | None, cache_dir: Path | None) -> Config:
    flags = {"cache": {} if cache_dir is None else {"directory": str(cache_dir)}}
    try:
        settings = load(file, flags)
    except ConfigError as error:
        _fail("\n".join(error.problems), _USAGE)
    return settings


def _fail(message: str, code: int) -> NoReturn:
    print("\n".join(f"mirror: {line}" for line in message.splitlines()), file=sys.stderr)
    raise typer.Exit(code)
