"""Commands for cached images: list, remove, verify; and statistics."""

import json
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mirror import threads
from mirror.cli.options import CacheOption, ConfigOption, JsonOption, command_group, settings
from mirror.cli.stats import print_statistics
from mirror.cli.table import ago, print_table
from mirror.config import Config
from mirror.logs import configure
from mirror.ui.formatting import plain_size as size
from mirror.user_error import ExitCode

app = command_group()


class Order(StrEnum):
    """Sort order of a list."""

    NAME = "name"
    SIZE = "size"
    USED = "used"


@app.command("ls", rich_help_panel="Cache")
def list_images(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Names or globs such as alpine or 'ghcr.io/**:1.*'.")
    ] = None,
    sort: Annotated[Order, typer.Option(help="By name, largest first, or last used first.")] = (
        Order.NAME
    ),
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also images that only the object store has.")
    ] = False,
) -> None:
    """List the images in the cache: how much of each is there, and when it was last pulled."""
    configured = configured_for(config, cache_dir)
    # late: loads half of the server
    from mirror.admin.commands import listed, listed_cluster  # noqa: PLC0415

    found = threads.run((listed_cluster if cluster else listed)(configured, patterns or []))
    images = sorted(found["images"], key=_SORTED[sort])
    if as_json:
        print(json.dumps({**found, "images": images}, indent=2))
        return
    shared = found.get("object_store", {"images": [], "whole": True})
    rows = [*map(_row, images), *map(_shared_row, shared["images"])]
    if rows:
        print_table(("IMAGE", "PLATFORM", "SIZE", "THERE", "USED"), rows, {"SIZE"})
    total, cache = found["total"], found["cache"]
    noun = "image" if total["images"] == 1 else "images"
    print(
        f"{total['images']} {noun}, {size(total['bytes'])} (shared data counted once); "
        f"the cache has {size(cache['bytes'])} of {size(cache['max_bytes'])}"
    )
    if cluster:
        print(f"{len(shared['images']):,} more in the object store")
    if not shared["whole"]:
        print("the object store has further images: name some, such as 'ghcr.io/myorg/**'")


@app.command("stats", rich_help_panel="Cache")
def print_stats(
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    local: Annotated[
        bool, typer.Option("--local", help="Only this mirror, not the others of its cluster.")
    ] = False,
) -> None:
    """Show what the mirror has saved, how full its cache is, and the state of its upstreams.

    In a cluster, show the sums of all mirrors, and each of them.
    """
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import stats  # noqa: PLC0415  # late, as above

    found = threads.run(stats(configured, local=local))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_statistics(found)


@app.command("rm", rich_help_panel="Cache")
def remove_images(
    images: Annotated[
        list[str], typer.Argument(help="Images, globs in quotes ('alpine:3.*'), or digests.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be dropped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Drop images of [[keep]] too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Drop images from the cache, and data that no other cached image uses.

    Active transfers complete; the next pull comes from upstream.
    """
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import removed  # noqa: PLC0415  # late, as above

    gone = threads.run(removed(configured, images, dry_run=dry_run, force=force))
    if as_json:
        print(json.dumps(gone, indent=2))
        return
    for image in gone["images"]:
        print(f"{'would drop' if dry_run else 'dropped'} {image['name']}")
    count = len(gone["objects"])
    print(
        f"{count} {'object' if count == 1 else 'objects'}, {size(gone['bytes'])}"
        f"{' would be' if dry_run else ''} freed"
    )


@app.command(rich_help_panel="Cache")
def verify(
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="The object store of [cluster] instead.")
    ] = False,
) -> None:
    """Hash everything in the cache and drop damaged data; a mirror may run meanwhile.

    Exits with 1 if something was damaged.
    """
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import verified, verified_cluster  # noqa: PLC0415  # late, as above

    work = verified_cluster if cluster else verified
    from mirror.cli.progress import ByteProgress  # noqa: PLC0415  # rich: see mirror.cli.table

    with ByteProgress("verifying") as progress:
        found = threads.run(work(configured, progress.expect, progress.advance))
    if as_json:
        damaged = [{"kind": each.kind, "digest": str(each.digest)} for each in found.damaged]
        told = {"objects": found.objects, "bytes": found.bytes, "damaged": damaged}
        print(json.dumps(told, indent=2))
    else:
        for key in found.damaged:
            print(f"damaged, dropped: {key}")
        print(f"{found.objects} objects, {size(found.bytes)}: {len(found.damaged)} damaged")
    if found.damaged:
        raise typer.Exit(ExitCode.FAILED)


_SORTED = {
    Order.NAME: lambda image: image["name"],
    Order.SIZE: lambda image: -image["bytes"],
    Order.USED: lambda image: -_seconds(image["last_used"]),
}


def _row(image: dict[str, Any]) -> tuple[str, ...]:
    platforms = [each["platform"] or "?" for each in image["platforms"]]
    lacking = f"lacks {size(image['missing_bytes'])}" if platforms else "no platform"
    return (
        image["name"],
        ", ".join(platforms) or "-",
        size(image["bytes"]),
        ("whole" if image["whole"] else lacking) + (", kept" if image["kept"] else ""),
        ago(time.time() - _seconds(image["last_used"])),
    )


def _shared_row(image: dict[str, Any]) -> tuple[str, ...]:
    written = ago(time.time() - _seconds(image["written"]))
    return (image["name"], "-", "-", "in the object store", f"written {written}")


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def configured_for(file: Path | None, cache_dir: Path | None) -> Config:
    configured = settings(file, cache_dir)
    configure("error", configured.log.format, access=False)
    return configured
