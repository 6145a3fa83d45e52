"""What is known of visitors stays small, whatever they send."""

from mirror.upstream.auth import Authenticator
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.login import Principal, Principals


class Registry:
    def with_credentials(self, authenticator: Authenticator) -> "Registry":
        return self


class Sent:
    def __init__(self, principal: Principal) -> None:
        pass

    async def send(self, request, repository):
        raise NotImplementedError

    async def renew(self, repository: str) -> None:
        raise NotImplementedError

    def problems(self):
        raise NotImplementedError


def test_visitors_that_send_much_are_forgotten_sooner():
    endpoints = Endpoints("hub", [Registry()], Sent)  # type: ignore[list-item]  # a fake
    principals = Principals(b"a key")

    def principal(number: int):
        return principals.principal(f"Bearer {number:060000}")

    last = [endpoints.with_credentials(principal(number)) for number in range(100)]
    assert endpoints.with_credentials(principal(99)) is last[99]
    assert endpoints.with_credentials(principal(40)) is last[40]
    assert endpoints.with_credentials(principal(0)) is not last[0]
