"""What is known of visitors stays small, whatever they send."""

from mirror.upstream.credentials import Verbatim, Visitors
from mirror.upstream.endpoints import Endpoints


class Registry:
    def known_as(self, introduction: Verbatim) -> "Registry":
        return self


def test_visitors_that_send_much_are_forgotten_sooner():
    endpoints = Endpoints("hub", [Registry()], Verbatim)  # type: ignore[list-item]
    visitors = Visitors(b"a key")

    def visitor(number: int):
        return visitors.visitor(f"Bearer {number:060000}")

    last = [endpoints.known_as(visitor(number)) for number in range(100)]
    assert endpoints.known_as(visitor(99)) is last[99]
    assert endpoints.known_as(visitor(40)) is last[40]
    assert endpoints.known_as(visitor(0)) is not last[0]
