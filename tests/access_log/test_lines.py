"""Lines of the log's own thread are those that the formatters of the standard library make."""

import json
import logging
import os
from contextlib import contextmanager

import pytest

from mirror.access_log import AccessLog, PullTracker
from mirror.api.parts import client_version
from mirror.http.exchange import AccessRecord, Exchange
from mirror.http.forwarded import Origin
from mirror.logs import JsonFormatter, QueuedOutput, TextFormatter, configure
from mirror.pull.outcome import Outcome

ODD = 'a "quoted"\nname = \x1b[31m é'


def record(**fields: object) -> AccessRecord:
    exchange = Exchange(0.0, Origin("10.0.0.1"))
    for name, value in fields.items():
        setattr(exchange, name, value)
    return AccessRecord(exchange, "GET", "/v2/?secret", "10.0.0.1", ODD, 0.25)


RECORDS = {
    "refused": record(status=403, kind="tunnel", outcome=Outcome.DENIED, detail="from-refused"),
    "asked": record(status=401, kind="tunnel", outcome=Outcome.DENIED, detail="from-asked"),
    "alone": record(status=502, kind="tags", outcome=Outcome.ERROR, detail="from-alone"),
    "ping": record(status=200, kind="", detail=""),
    "hit": record(
        status=200, kind="blob", upstream="docker.io", repository="library/x",
        reference="sha256:1", outcome=Outcome.HIT, sent_bytes=17, detail="from-hit",
    ),
    "failed": record(
        status=502, kind="blob", reference="sha256:2", outcome=Outcome.ERROR, detail="from-failed"
    ),
    "odd": record(status=400, kind="passed", repository=ODD, detail=ODD, whole=False),
}  # fmt: skip


@contextmanager
def logging_to(handler: logging.Handler):
    root, log = logging.getLogger(), logging.getLogger("mirror.access")
    before, level = root.handlers[:], log.level
    root.handlers[:] = [handler]
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.handlers[:] = before
        log.setLevel(level)


class Collected(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
@pytest.mark.parametrize("client", ["10.0.0.1", "", ODD])
@pytest.mark.parametrize("ending", RECORDS.values(), ids=RECORDS)
def test_a_queued_line_is_the_line_of_the_formatter(form, client, ending):
    collected = Collected(form())
    with logging_to(collected):
        AccessLog(PullTracker()).repeated(ending)(client, 0.00012)
    reader, writer = os.pipe()
    try:
        queue = QueuedOutput(writer)
        queue.setFormatter(form())
        with logging_to(queue):
            log = AccessLog(PullTracker())
            log.repeated(ending)(client, 0.00012)
            log.request_ended(ending)
        queue.drain()
        queued, once, _ = os.read(reader, 65536).decode().split("\n")
    finally:
        os.close(reader)
        os.close(writer)
    (expected,) = collected.lines
    if form is TextFormatter:
        assert queued.split(" ")[1:] == expected.split(" ")[1:]
        assert " seconds=0.25 " in once
    else:
        assert {**json.loads(queued), "time": ""} == {**json.loads(expected), "time": ""}
        assert json.loads(once)["seconds"] == 0.25
    assert "secret" not in queued


@pytest.mark.parametrize(
    ("level", "form", "access", "logged"),
    [
        ("info", "text", True, {"alone", "refused"}),
        ("debug", "text", True, {"hit", "failed", "alone", "refused", "asked"}),
        ("debug", "text", False, {"alone"}),
        ("info", "json", True, {"hit", "failed", "alone", "refused", "asked"}),
        ("info", "json", False, {"alone"}),
        ("warning", "text", True, {"alone"}),
        ("warning", "json", True, {"alone"}),
        ("error", "text", True, set()),
    ],
)
def test_requests_are_for_machines_and_for_a_search_and_the_line_of_a_pull_says_why_it_failed(
    level, form, access, logged
):
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    collected = Collected(formatter)
    root = logging.getLogger().level
    with logging_to(collected):
        configure(level, form, access=access)
        logging.getLogger().handlers[:] = [collected]
        log = AccessLog(PullTracker())
        for name in ("hit", "failed", "alone", "refused", "asked"):
            log.request_ended(RECORDS[name])
    logging.getLogger().setLevel(root)
    text = "\n".join(collected.lines)
    assert {name for name in RECORDS if f"from-{name}" in text} == logged
    usual = "info" if form == "json" else "debug"
    levels = {"hit": usual, "asked": usual, "refused": "info"} | dict.fromkeys(
        ("failed", "alone"), "warning"
    )
    for line in collected.lines:
        (name,) = (name for name in RECORDS if f"from-{name}" in line)
        assert levels[name] in line.partition("request")[0]


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_the_thread_of_the_log_writes_the_lines_of_pulls(form, level):
    reader, writer = os.pipe()
    try:
        queue = QueuedOutput(writer)
        queue.setFormatter(form())
        with logging_to(queue):
            logging.getLogger("mirror.access").setLevel(level)
            log = AccessLog(PullTracker())
            log.repeated(RECORDS["hit"])("10.0.0.1", 0.1)
            log.request_ended(RECORDS["failed"])
            log.beat(final=True)
            queue.drain()
        os.write(writer, b"end")
        text = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.close(writer)
    pulls = [line for line in text.splitlines() if "request" not in line][:-1]
    assert len(pulls) == {logging.INFO: 2, logging.WARNING: 1, logging.ERROR: 0}[level]
    if pulls and form is JsonFormatter:
        failed = json.loads(pulls[0])
        assert (failed["message"], failed["level"]) == ("pull", "warning")
        assert (failed["result"], failed["detail"]) == ("failed", "from-failed")
    elif pulls:
        assert " warning " in pulls[0]
        assert "failed: from-failed" in pulls[0]


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("docker/28.0.4 go/go1.23.7 UpstreamClient(Docker-Client/28.0.4)", "Docker 28.0"),
        ("containerd/v2.1.3", "containerd 2.1"),
        ("buildkit/v0.23-dev", "BuildKit 0.23"),
        ("containers/5.34.1 (github.com/containers/image)", "Podman"),  # of its library
        ("cri-o/1.33.0 go/go1.24", "CRI-O 1.33"),
        ("curl/8", "curl 8"),
        ("Mozilla", "Mozilla"),
        ("", "unknown"),
        ("\x1b[31m", "unknown"),
    ],
)
def test_programs_have_their_usual_names_and_versions(agent, name):
    assert client_version(agent) == name
