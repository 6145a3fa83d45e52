"""Which requests of clients are one pull, whatever process answered them and in what order."""

import logging
import random
from dataclasses import replace

import pytest

from mirror.access_log import PullTracker
from mirror.access_log.answers import NO_CONTENT, Answered, Content, Problem, PullRequest
from mirror.access_log.answers import RunningRequest as Running
from mirror.access_log.pulls import COMPLETE_SECONDS, SILENT_SECONDS

INDEX, CHILD, CONFIG, LAYER = (f"sha256:{digit * 64}" for digit in "1234")
GONE = Problem("failed", "docker.io: cannot connect", logging.WARNING)
PLAIN = PullRequest(
    user="", agent="Docker 28.0", upstream="docker.io", repository="library/redis",
    reference="7", is_manifest=True, head=False, result="hit", size=10, problem=None,
    digest=INDEX, content=NO_CONTENT, trace_id="", upstream_seconds=0.0,
)  # fmt: skip
HEAD = replace(PLAIN, head=True, size=0)
TAG = replace(PLAIN, content=Content({}, {CHILD: "linux/amd64", "sha256:5": "linux/arm64"}))
MANIFEST = replace(
    PLAIN, reference=CHILD, digest=CHILD, content=Content({CONFIG: 100, LAYER: 1000}, {})
)
BLOBS = [
    replace(PLAIN, reference=digest, is_manifest=False, digest="", size=size)
    for digest, size in ((CONFIG, 100), (LAYER, 1000))
]
IMAGE = [HEAD, TAG, MANIFEST, *BLOBS]
CLIENT = "10.1.2.3"


class Pulls:
    """A tracker whose clock the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tracker = PullTracker(lambda: self.now)

    def answer(self, *requests: PullRequest, client: str = CLIENT, at: float | None = None):
        """What ends with requests that are answered now, or at another time."""
        ended = self.now if at is None else at
        return self.tracker.take([Answered(each, client, 1, ended, ended) for each in requests], ())

    def later(self, seconds: float, *running: Running):
        self.now += seconds
        return self.tracker.take((), running)


@pytest.fixture
def pulls() -> Pulls:
    return Pulls()


def test_an_image_that_is_sent_is_one_pull(pulls):
    for request in IMAGE:
        assert not pulls.answer(request)
    assert not pulls.later(COMPLETE_SECONDS / 2)
    (pull,) = pulls.later(COMPLETE_SECONDS / 2)
    assert (pull.reference, pull.platform, pull.outcome) == ("7", "linux/amd64", "hit")
    assert (pull.sent_bytes, pull.times, pull.level) == (1120, 1, logging.INFO)
    assert not pulls.later(1000)


def test_requests_in_any_order_are_the_same_pull(pulls):
    """Several processes report parts of a pull, each once in a while."""
    shuffled = random.Random(7)
    for number in range(200):
        order = shuffled.sample(list(enumerate(IMAGE)), len(IMAGE))
        for place, request in order:
            pulls.answer(request, client=str(number), at=pulls.now + place / 10)
        (pull,) = pulls.later(SILENT_SECONDS)
        assert (pull.reference, pull.platform, pull.outcome) == ("7", "linux/amd64", "hit")
        assert (pull.sent_bytes, pull.times) == (1120, 1)
        assert pull.last - pull.first == pytest.approx(0.4)


@pytest.mark.parametrize("asked", [[HEAD], [TAG], [HEAD, TAG, MANIFEST]])
def test_a_client_that_asks_for_no_blob_is_up_to_date(pulls, asked):
    pulls.answer(*asked)
    assert not pulls.later(SILENT_SECONDS / 2)
    (pull,) = pulls.later(SILENT_SECONDS / 2)
    assert (pull.reference, pull.outcome, pull.level) == ("7", "up to date", logging.INFO)


def test_a_client_that_has_some_layers_has_pulled_when_it_is_silent(pulls):
    pulls.answer(TAG, MANIFEST, BLOBS[0])
    assert not pulls.later(SILENT_SECONDS / 2)
    (pull,) = pulls.later(SILENT_SECONDS / 2)
    assert (pull.outcome, pull.platform, pull.sent_bytes) == ("hit", "linux/amd64", 120)


def test_a_request_in_progress_keeps_a_pull_from_ending(pulls):
    pulls.answer(TAG, MANIFEST, BLOBS[0])
    for _ in range(100):
        assert not pulls.later(1, Running(CLIENT, "docker.io", "library/redis"))
    assert not pulls.later(1, Running("10.9.9.9", "docker.io", "library/redis"))
    pulls.answer(BLOBS[1])
    (pull,) = pulls.later(COMPLETE_SECONDS)
    assert pull.last - pull.first == 101


def test_the_next_pull_of_an_image_is_another_one(pulls):
    pulls.answer(*IMAGE)
    pulls.now += 0.1
    (first,) = pulls.answer(*IMAGE)
    (second,) = pulls.later(COMPLETE_SECONDS)
    assert first.sent_bytes == second.sent_bytes == 1120


def test_two_jobs_that_pull_at_once_are_one_line_that_says_so(pulls):
    for request in IMAGE:
        pulls.answer(request, request)
    (pull,) = pulls.later(COMPLETE_SECONDS)
    assert (pull.times, pull.sent_bytes) == (2, 2240)


def test_two_tags_are_two_pulls(pulls):
    other = Content({}, {"sha256:6": "linux/amd64"})
    part = replace(
        MANIFEST, reference="sha256:6", digest="sha256:6", content=Content({"x:1": 1}, {})
    )
    blob = replace(BLOBS[0], reference="x:1", size=1)
    tag = replace(TAG, reference="8", digest="sha256:7", content=other)
    pulls.answer(tag, TAG, MANIFEST, part, BLOBS[0], blob, BLOBS[1])
    ended = {pull.reference: pull.sent_bytes for pull in pulls.later(COMPLETE_SECONDS)}
    assert ended == {"7": 1120, "8": 21}


def test_clients_and_programs_have_pulls_of_their_own(pulls):
    pulls.answer(*IMAGE, client="10.0.0.1")
    pulls.answer(*IMAGE, client="10.0.0.2")
    pulls.answer(*(replace(each, agent="Podman") for each in IMAGE), client="10.0.0.1")
    assert len(pulls.later(COMPLETE_SECONDS)) == 3


def test_a_request_that_succeeds_at_last_has_not_failed(pulls):
    for request in (HEAD, TAG, MANIFEST, *BLOBS):
        pulls.answer(replace(request, problem=GONE, size=0), at=pulls.now)
        pulls.answer(request, at=pulls.now + 1)
        pulls.answer(replace(request, problem=GONE, size=0), at=pulls.now)  # reported late
    (pull,) = pulls.later(SILENT_SECONDS)
    assert (pull.outcome, pull.level) == ("hit", logging.INFO)


def test_a_pull_that_failed_says_the_gravest_reason(pulls):
    slight = Problem("interrupted", "the client closed the connection", logging.INFO)
    pulls.answer(TAG, MANIFEST, replace(BLOBS[0], problem=GONE), replace(BLOBS[1], problem=slight))
    (pull,) = pulls.later(SILENT_SECONDS)
    assert (pull.reference, pull.problem, pull.level) == ("7", GONE, logging.WARNING)


def test_what_follows_a_pull_that_ended_has_its_name(pulls):
    pulls.answer(TAG, MANIFEST, BLOBS[0])
    pulls.later(SILENT_SECONDS)
    pulls.answer(BLOBS[1])
    (pull,) = pulls.later(SILENT_SECONDS)
    assert (pull.reference, pull.platform, pull.sent_bytes) == ("7", "linux/amd64", 1000)


def test_a_blob_of_no_known_image_is_a_pull_without_a_name(pulls):
    pulls.answer(BLOBS[1])
    (pull,) = pulls.later(SILENT_SECONDS)
    assert (pull.reference, pull.sent_bytes) == ("", 1000)


def test_an_image_by_digest_has_that_name(pulls):
    pulls.answer(replace(TAG, reference=INDEX), MANIFEST, *BLOBS)
    (pull,) = pulls.later(COMPLETE_SECONDS)
    assert (pull.reference, pull.platform) == (INDEX, "linux/amd64")


def test_many_clients_and_many_tags_take_bounded_memory(pulls):
    clients = [Answered(HEAD, str(number), 1, 1000, 1000) for number in range(5000)]
    assert len(pulls.tracker.take(clients, ())) == 5000 - 4096
    ended = [pull for tag in range(50) for pull in pulls.answer(replace(HEAD, reference=str(tag)))]
    assert len(ended) >= 50 - 16
    many = replace(MANIFEST, content=Content({f"sha256:{n}": 1 for n in range(2000)}, {}))
    pulls.answer(many)
    assert all(len(pull.parts) <= 1000 for pull in pulls.later(SILENT_SECONDS))


def test_all_pulls_end_with_the_mirror(pulls):
    pulls.answer(TAG, MANIFEST)
    (pull,) = pulls.tracker.take((), (), final=True)
    assert pull.reference == "7"


def test_a_pull_is_a_hit_if_its_layers_were_and_stale_if_its_tag_was(pulls):
    checked, stale = replace(TAG, result="revalidated"), replace(TAG, result="stale")
    pulls.answer(checked, MANIFEST, *BLOBS, client="10.0.0.1")
    pulls.answer(stale, MANIFEST, *BLOBS, client="10.0.0.2")
    pulls.answer(checked, replace(BLOBS[0], result="miss"), BLOBS[1], client="10.0.0.3")
    pulls.answer(stale, client="10.0.0.4")
    ended = pulls.later(SILENT_SECONDS)
    assert [pull.outcome for pull in ended] == ["hit", "stale", "miss", "stale"]
