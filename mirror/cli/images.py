"""Commands that pull, export and import images.  They print, and decide nothing else."""

import json
import platform as machine
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from mirror import threads
from mirror.cli.options import CacheOption, ConfigOption, JsonOption, command_group, settings
from mirror.logs import configure
from mirror.oci.image_name import ImageName, Listed, parse_image, parse_list
from mirror.oci.platform import InvalidPlatform, Platform
from mirror.ui.formatting import plain_size
from mirror.user_error import ExitCode, UserError

if TYPE_CHECKING:
    from mirror.registry_client.pull import Pulled

R = TypeVar("R")

app = command_group()

ImagesArgument = Annotated[
    list[str] | None, typer.Argument(help="Names as docker pull takes them.")
]
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


@app.command(rich_help_panel="Images")
def warm(
    images: ImagesArgument = None,
    platform: PlatformOption = None,
    all_platforms: AllOption = False,
    file: FileOption = None,
    parallel: ParallelOption = 4,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pull images into the cache; after Ctrl-C the same command continues.

    Exits with 1 if an image failed.
    """
    configured = settings(config, cache_dir)
    platforms = _platforms(platform or [], everything=all_platforms)
    names = _names(images or [], file)
    from mirror.cli.progress import ImagesProgress  # noqa: PLC0415  # late: rich
    from mirror.transfer.warm import excess  # noqa: PLC0415  # late: HTTP
    from mirror.transfer.warm import warm as pull  # noqa: PLC0415

    progress = ImagesProgress()
    result = _run(pull(configured, names, platforms, parallel, progress), progress)
    print(_document(result) if as_json else _summary(result))
    if warning := excess(configured, result):
        print(f"mirror: {warning}", file=sys.stderr)
    if any(pulled.reason for pulled in result):
        raise typer.Exit(ExitCode.FAILED)


@app.command("export", rich_help_panel="Images")
def export_images(
    output: Annotated[
        str, typer.Option("-o", "--output", help="A file (tar), a directory, or - for stdout.")
    ],
    images: ImagesArgument = None,
    platform: PlatformOption = None,
    all_platforms: AllOption = False,
    file: FileOption = None,
    parallel: ParallelOption = 4,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Write images as an OCI image layout; images that are not cached are pulled first."""
    configured = settings(config, cache_dir)
    platforms = _platforms(platform or [], everything=all_platforms)
    names = _names(images or [], file)
    if output == "-" and sys.stdout.isatty():
        text = "refusing to write a tar to a terminal: name a file with -o"
        raise UserError(text, ExitCode.USAGE)
    from mirror.cli.progress import ByteProgress, ImagesProgress  # noqa: PLC0415  # late: rich
    from mirror.transfer.export import export  # noqa: PLC0415  # late: HTTP

    bars, bar = ImagesProgress(), ByteProgress("writing")
    plans = _run(export(configured, names, platforms, parallel, output, bars, bar), nullcontext())
    for plan in plans:
        size = plain_size(plan.blob_bytes)
        print(f"{plan.wanted.full_name}: {size}, {plan.root.digest}", file=sys.stderr)


@app.command("import", rich_help_panel="Images")
def import_images(
    source: Annotated[str, typer.Argument(help="A tar, a directory, or - for stdin.")],
    called: Annotated[
        str | None, typer.Option("--as", help="Name of the image, if there is only one.")
    ] = None,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load images into the cache from an OCI image layout; a mirror may run meanwhile.

    Exits with 1 if an image is incomplete or has no name.
    """
    configured = settings(config, cache_dir)
    name = _names([called], None)[0] if called is not None else None
    if source == "-" and sys.stdin.isatty():
        text = "cannot read a tar from a terminal: name a file, or pipe one in"
        raise UserError(text, ExitCode.USAGE)
    from mirror.cli.progress import ByteProgress  # noqa: PLC0415  # late, as above
    from mirror.transfer.imports import import_layout  # noqa: PLC0415

    progress = ByteProgress("importing")
    result = _run(import_layout(configured, source, name, progress), progress)
    if as_json:
        print(json.dumps({"images": [image.document() for image in result]}, indent=2))
    else:
        for image in result:
            told = f"failed: {image.reason}" if image.reason else plain_size(image.size)
            print(f"{image.name}: {told}")
    if any(image.reason for image in result):
        raise typer.Exit(ExitCode.FAILED)


def _run(work: Coroutine[Any, Any, R], progress: AbstractContextManager[object]) -> R:
    """Run the work, and show its progress; Ctrl-C ends it with one line."""
    try:
        with progress:
            # Only now, so that log lines go above the bars: a mirror in this process may log
            # errors.
            configure("warning", "text", access=False)
            return threads.run(work)
    except KeyboardInterrupt:
        text = "interrupted: what was downloaded stays; run the same command to continue"
        raise UserError(text, ExitCode.INTERRUPTED) from None


def _names(typed: list[str], file: str | None) -> list[ImageName]:
    """The named images, and those in a list of one image per line."""
    if not typed and file is None:
        text = "name an image, such as alpine:3.20, or a list of them with --file"
        raise UserError(text, ExitCode.USAGE)
    names, mistakes = [], []
    for text in typed:
        try:
            names.append(parse_image(text))
        except ValueError as error:
            mistakes.append(str(error))
    source = "stdin" if file == "-" else file
    for line in () if source is None else _listed(source, sys.stdin if file == "-" else None):
        if line.image is None:
            mistakes.append(f"{source}:{line.number}: {line.mistake}")
        else:
            names.append(line.image)
    if mistakes:
        raise UserError("\n".join(mistakes), ExitCode.USAGE)
    return names


def _listed(source: str, lines: TextIO | None) -> Iterable[Listed]:
    """Read a list: ``lines`` if that is open already, else the file ``source``."""
    try:
        text = Path(source).read_text(encoding="utf-8") if lines is None else lines.read()
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not a list of images: not UTF-8") from error
    return parse_list(text.splitlines())


def _platforms(texts: list[str], *, everything: bool) -> list[Platform]:
    """The named platforms; an empty list for all, this machine's by default."""
    if texts and everything:
        raise UserError("either --platform or --all-platforms, not both", ExitCode.USAGE)
    try:
        named = [Platform.parse(part) for text in texts for part in text.split(",")]
    except InvalidPlatform as error:
        raise UserError(str(error), ExitCode.USAGE) from error
    return named if named or everything else [Platform.of("linux", machine.machine())]


def _summary(result: "Sequence[Pulled]") -> str:
    failed = [pulled for pulled in result if pulled.reason]
    fetched = plain_size(sum(pulled.fetched for pulled in result))
    found = plain_size(sum(pulled.found for pulled in result))
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
