"""Fuzzes one parser with atheris, in its own process because libFuzzer never returns.

``python -m tools.fuzz.guided <parser> <seconds> <seed> <directory>``: exits 0, or 1 with the
finding as one line of JSON in ``<directory>/finding``.
"""

import json
import os
import resource
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mirror"]):
    from tools.fuzz.parsers import MAX_BYTES, PARSERS

_MOST_BYTES = 2 << 30


def main() -> None:
    """Fuzz until the time is over, or until a finding."""
    name, seconds, seed, directory = sys.argv[1:]
    parser = next(each for each in PARSERS if each.name == name)
    place = Path(directory)
    corpus = place / "corpus"
    corpus.mkdir()
    for number, text in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(text)

    def once(data: bytes) -> None:
        try:
            parser.try_all(data)
        except Exception:
            finding = {"case": repr(data), "why": traceback.format_exc()}
            (place / "finding").write_text(json.dumps(finding))
            os._exit(1)  # libFuzzer would print pages of output

    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": MAX_BYTES,
        "rss_limit_mb": 0,  # the limit would count the peak of the parent process
        "timeout": 20,
        "print_final_stats": 1,
        "artifact_prefix": f"{place}/",
    }
    arguments = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
