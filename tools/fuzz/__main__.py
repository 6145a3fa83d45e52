"""``python -m tools.fuzz [--minutes 3] [--seed N]``: fuzzes all input from outside.

Prints each input with a wrong result, and exits with 1 if there is one.
"""

import argparse
import secrets
import sys

from tools.fuzz.clients import fuzz_clients
from tools.fuzz.findings import Report
from tools.fuzz.interleavings import fuzz_interleavings
from tools.fuzz.searching import fuzz_parsers
from tools.fuzz.upstreams import fuzz_upstreams

_TARGETS = (fuzz_parsers, fuzz_clients, fuzz_upstreams, fuzz_interleavings)


def _told(reports: list[Report]) -> int:
    """Print the findings; returns their number."""
    for report in reports:
        print(report.line(), flush=True)
        for finding in report.findings:
            print(f"\n{finding.case}\n{finding.why}", flush=True)
    return sum(len(report.findings) for report in reports)


def main() -> int:
    """Fuzz for a while; returns the exit code."""
    options = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    options.add_argument("--minutes", type=float, default=3.0, help="time for all targets together")
    options.add_argument("--seed", type=int, default=secrets.randbelow(2**31 - 1))
    chosen = options.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    share = chosen.minutes * 60 / len(_TARGETS)
    count = sum(_told(target(share, chosen.seed)) for target in _TARGETS)
    print(f"{count} findings" if count else "no findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
