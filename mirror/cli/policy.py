"""Commands for images that the mirror must not give out."""

import json
from typing import Annotated, Any

import typer

from mirror import threads
from mirror.cli.cache import configured_for
from mirror.cli.options import CacheOption, ConfigOption, JsonOption, command_group
from mirror.cli.table import print_table
from mirror.config import Config

app = command_group()

Targets = Annotated[
    list[str], typer.Argument(help="Images, globs in quotes ('evil/*:*'), or digests.")
]


@app.command("block", rich_help_panel="Policies")
def block_images(
    targets: Targets,
    reason: Annotated[str, typer.Option(help="The cause; clients read it.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Refuse images or digests from now on, in all workers; breaks off their transfers."""
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import blocked  # noqa: PLC0415  # late: loads half of the server

    found = threads.run(blocked(configured, targets, reason))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for each in found["blocks"]:
        count = len(each["digests"])
        print(f"blocked {each['target']} ({count} digest{'' if count == 1 else 's'})")
    _print_replicas(found, configured)


def _print_replicas(found: dict[str, Any], configured: Config) -> None:
    """Print which replicas of a cluster have changed blocks."""
    said = found.get("cluster")
    if said is None:
        if configured.cluster.secret_file:
            print("no mirror runs here: the other replicas learn of it when this one starts")
        return
    place, error = said["place"], said["place_error"]
    lacking = [each for each in said["replicas"] if each["error"]]
    if said["replicas"] and not lacking:
        print(f"in force on all {len(said['replicas']) + 1} replicas")
    elif lacking:
        having = [each["replica"] for each in said["replicas"] if not each["error"]]
        print(f"in force on {', '.join([said['here'], *having])}")
    for each in lacking:
        print(f"not yet on {each['replica']}: {each['error']}")
    if place is not None and error:
        print(f"not yet in {place}, which is tried again every ten seconds: {error}")
    elif place is not None:
        print(f"replicas that were down read it from {place}")
    elif lacking:
        print("without [cluster] objects or state: give the command again when they answer")


@app.command("unblock", rich_help_panel="Policies")
def unblock_images(
    targets: Targets,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Give out blocked images again; those of [[block]] stay blocked."""
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import unblocked  # noqa: PLC0415  # late, as above

    found = threads.run(unblocked(configured, targets))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for each in found["blocks"]:
        print(f"unblocked {each['target']}")
    _print_replicas(found, configured)


@app.command("blocks", rich_help_panel="Policies")
def list_blocks(
    as_json: JsonOption = False, config: ConfigOption = None, cache_dir: CacheOption = None
) -> None:
    """List the blocked images: since when, by whom, and why."""
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import blocks  # noqa: PLC0415  # late, as above

    found = threads.run(blocks(configured))
    if as_json:
        print(json.dumps(found, indent=2))
    elif found["blocks"]:
        rows = [
            (each["target"], each["since"] or "[[block]]", each["by"] or "-", each["reason"] or "-")
            for each in found["blocks"]
        ]
        print_table(("BLOCKED", "SINCE", "BY", "REASON"), rows)
    else:
        print("nothing is blocked")


@app.command("release", rich_help_panel="Policies")
def release_images(
    targets: Annotated[
        list[str], typer.Argument(help="name@sha256:..., or a tag, for its digest upstream.")
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Let one digest pass the cooldown of [[policy]] now."""
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import released  # noqa: PLC0415  # late, as above

    found = threads.run(released(configured, targets))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for each in found["released"]:
        print(f"released {each['image']}: {each['digest']}")


@app.command("policy", rich_help_panel="Policies")
def explain_image(
    image: Annotated[str, typer.Argument(help="An image, by tag or digest.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Explain what blocks, pins and rules make of an image."""
    configured = configured_for(config, cache_dir)
    from mirror.admin.commands import explained  # noqa: PLC0415  # late, as above

    found = threads.run(explained(configured, image))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"image     {found['image']}")
    print(f"upstream  {found['upstream_digest'] or 'not asked yet'}")
    open_yet = any(each["applies"] and not each["decision"] for each in found["rules"])
    undecided = not found["block"] and (open_yet or not found["upstream_digest"])
    instead = "not decided yet" if undecided else "refused"
    print(f"served    {found['served_digest'] or instead}")
    for reason in filter(None, (found["block"], found["pin"])):
        print(reason)
    for each in found["rules"]:
        verdict = each["decision"] or ("undecided" if each["applies"] else "does not apply")
        print(f"{each['rule']}: {verdict}" + (f": {each['why']}" if each["why"] else ""))
