"""What a PromQL expression asks for, read with a small tokenizer: Debian's promtool cannot say."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

Series = Mapping[str, list[dict[str, str]]]  # the labels of every series, by metric

_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*") | (?P<range>\[[^\]]*\]) | (?P<number>\d[\w.]*)
    | (?P<name>[a-zA-Z_:][\w:]*) | (?P<sign>=~|!~|!=|==|<=|>=|[^\s])""",
    re.VERBOSE,
)
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "sum", "min", "max", "avg", "count"}
_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Matcher:
    label: str
    sign: str
    value: str


@dataclass(frozen=True)
class Query:
    """The metrics of an expression with their matchers, and the labels it groups or joins by."""

    selectors: tuple[tuple[str, tuple[Matcher, ...]], ...]
    labels: frozenset[str]


def parse(expression: str) -> Query:
    """Read an expression that is known to be valid."""
    tokens = [(found.lastgroup, found[0]) for found in _TOKEN.finditer(expression)]
    selectors, labels = [], set()
    position = 0
    while position < len(tokens):
        kind, text = tokens[position]
        following = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        position += 1
        if kind != "name" or text in _WORDS:
            continue
        if text in _LISTS and following == "(":
            end = tokens.index(("sign", ")"), position)
            labels |= {word for group, word in tokens[position:end] if group == "name"}
            position = end
        elif following == "{":
            end = tokens.index(("sign", "}"), position)
            selectors.append((text, tuple(_matchers(tokens[position + 1 : end]))))
            position = end
        elif following != "(":
            selectors.append((text, ()))
    return Query(tuple(selectors), frozenset(labels))


def _matchers(tokens: list[tuple[str | None, str]]) -> Iterator[Matcher]:
    words = [text for _, text in tokens if text != ","]
    for label, sign, value in zip(words[::3], words[1::3], words[2::3], strict=True):
        yield Matcher(label, sign, value[1:-1])


def series(samples: Iterable[str], **target: str) -> dict[str, list[dict[str, str]]]:
    """The series behind ``name{labels}``, with the labels that scraping adds."""
    known: dict[str, list[dict[str, str]]] = {}
    for sample in samples:
        found = _SAMPLE.fullmatch(sample)
        assert found, sample
        known.setdefault(found[1], []).append({**dict(_LABEL.findall(found[2] or "")), **target})
    return known


def unknown(expression: str, known: Series, used: Iterable[str] = ()) -> list[str]:
    """Metrics, labels and label values that do not exist; ``used`` are labels put into a text.

    Every alternative of a regular expression must match something; a value that begins with ``$``
    is a dashboard's variable.
    """
    query = parse(expression)
    problems, there = [], set()
    for metric, matchers in query.selectors:
        if metric not in known:
            problems.append(f"no metric {metric}")
            continue
        labels = {label for labels in known[metric] for label in labels}
        there |= labels
        for matcher in matchers:
            values = {labels.get(matcher.label, "") for labels in known[metric]}
            if matcher.label not in labels:
                problems.append(f"{metric} has no label {matcher.label}")
            elif not matcher.value.startswith("$"):
                problems += [
                    f"{metric} has no {matcher.label} {value}"
                    for value in _alternatives(matcher)
                    if not any(re.fullmatch(value, found) for found in values)
                ]
    problems += [f"no label {label}" for label in {*query.labels, *used} - there]
    return problems


def _alternatives(matcher: Matcher) -> list[str]:
    return matcher.value.split("|") if "~" in matcher.sign else [re.escape(matcher.value)]
