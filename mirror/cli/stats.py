"""Output of ``mirror stats`` for people."""

import time
from datetime import datetime
from typing import Any

from mirror.cli.table import ago, print_table, share
from mirror.ui.formatting import plain_size as size


def print_statistics(found: dict[str, Any]) -> None:
    """Print the result of ``inventory.listing``, and which mirror runs."""
    print(_running(found["running"]))
    if found["trouble"]:
        print(f"no statistics are recorded at the moment: {found['trouble']}")
    for each in found["problems"]:
        print(f"{each['title']}: {each['cause']}; {each['remedy']}")
    print()
    cluster = found.get("cluster")
    if cluster is None:
        _print_figures(found, f"SINCE {found['since'][:10]}" if found["since"] else "IN ALL")
    else:
        _print_cluster(cluster)
    asked = [each for each in found["upstreams"] if each["up"] is not None]
    if asked:
        names = ("UPSTREAM", "HEALTH", "REQUESTS", "FAILED", "HITS", "SAVED", "RATE LIMIT")
        numbers = {"REQUESTS", "FAILED", "HITS", "SAVED"}
        print_table(names, list(map(_upstream, asked)), numbers)
    others = [each["name"] for each in found["upstreams"] if each["up"] is None]
    if others and not found["trouble"]:  # else it is not known
        print(f"not asked yet: {', '.join(others)}")
    if found["fills"]:
        print()
        columns = ("DOWNLOADING", "DONE", "OF", "RATE", "CLIENTS")
        print_table(columns, list(map(_fill, found["fills"])), set(columns[1:]))


def _print_figures(found: dict[str, Any], since: str) -> None:
    """Print what was saved in all, from the time that ``since`` names, and today."""
    total, today = found["total"], found["today"]
    rows: list[tuple[str, ...]] = [
        ("requests", f"{total['requests']:,}", f"{today['requests']:,}"),
        *[("failed", f"{_failed(total):,}", f"{_failed(today):,}")] * bool(_failed(total)),
        ("without a download", share(total["hit_rate"]), share(today["hit_rate"])),
        *(
            (name, size(total[key]), size(today[key]))
            for name, key in (
                ("served", "served_bytes"),
                ("from upstream", "upstream_bytes"),
                ("saved", "saved_bytes"),
            )
        ),
        ("saved of what was served", share(total["byte_hit_rate"]), share(today["byte_hit_rate"])),
    ]
    print_table(("", since, "TODAY"), rows, {since, "TODAY"})
    cache = found["cache"]
    kept = f", {size(cache['kept_bytes'])} of it kept" if cache.get("kept_bytes") else ""
    print(
        f"\ncache: {size(cache['bytes'])} of {size(cache['max_bytes'])} "
        f"in {cache['objects']:,} objects{kept}\n"
    )


def _print_cluster(cluster: dict[str, Any]) -> None:
    replicas = cluster["replicas"]
    silent = sum(not each["answers"] for each in replicas)
    print(f"cluster of {len(replicas)} replicas" + (f", {silent} without an answer" * bool(silent)))
    _print_figures(cluster, "IN ALL")
    numbers = ("REQUESTS", "HITS", "SERVED", "FROM UPSTREAM", "CACHE")
    columns = ("REPLICA", "HEALTH", *numbers, "STARTED", "VERSION")
    print_table(columns, list(map(_replica, replicas)), set(numbers))
    for each in cluster["problems"]:
        print(f"{each['cause']}: {each['remedy']}")
    print("\nthis mirror:")


def _replica(replica: dict[str, Any]) -> tuple[str, ...]:
    name = replica["address"] + (" (here)" if replica["here"] else "")
    if not replica["answers"]:
        return (name, "no answer", *"-------")
    total, problems = replica["total"], replica["problems"]
    return (
        name,
        f"{problems} trouble{'' if problems == 1 else 's'}" if problems else "up",
        f"{total['requests']:,}",
        share(total["hit_rate"]),
        size(total["served_bytes"]),
        size(total["upstream_bytes"]),
        size(replica["cache"]["bytes"]),
        _started(replica["started"]),
        replica["version"] or "-",
    )


def _started(moment: str) -> str:
    return ago(time.time() - datetime.fromisoformat(moment).timestamp())


def _running(running: dict[str, Any] | None) -> str:
    if running is None:
        return "no mirror runs on this cache directory"
    processes = running["processes"]
    several = f" in {processes} processes" if processes > 1 else ""
    return f"mirror {running['version']} runs{several}, started {_started(running['started'])}"


def _upstream(account: dict[str, Any]) -> tuple[str, ...]:
    left, limit = account["rate_limit_remaining"], account["rate_limit"]
    total = account["total"]
    return (
        account["name"],
        _health(account["last_answer"], account["up"]),
        f"{sum(total['results'].values()):,}",
        f"{_failed(total):,}",
        share(total["hit_rate"]),
        size(total["saved_bytes"]),
        "-" if left is None or limit is None else f"{left:,.0f} of {limit:,.0f} left",
    )


def _failed(figures: dict[str, Any]) -> int:
    """Return how many requests failed or were refused; 404 is an answer."""
    results: dict[str, int] = figures["results"]
    return results.get("error", 0) + results.get("denied", 0)


def _health(code: str, up: bool) -> str:
    """Return the state of an upstream in the words of the status page."""
    if code == "429":
        return "rate limited"
    return "up" if up else "no answer" if code == "error" else f"fails ({code})"


def _fill(fill: dict[str, Any]) -> tuple[str, ...]:
    total = fill["total_bytes"]
    return (
        f"{fill['upstream']}/{fill['repository']} {fill['digest'][:19]}",
        size(fill["bytes"]),
        "?" if total is None else size(total),
        f"{size(fill['bytes_per_second'])}/s",
        str(fill["clients"]),
    )
