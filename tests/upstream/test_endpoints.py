"""What is known of visitors stays small, whatever they send."""

from mirror.upstream.credentials import Principal, Principals
from mirror.upstream.endpoints import Endpoints


class Registry:
    def with_credentials(self, authenticator: Principal) -> "Registry":
        return self


def test_visitors_that_send_much_are_forgotten_sooner():
    endpoints = Endpoints("hub", [Registry()], lambda principal: principal)  # type: ignore[arg-type,list-item,return-value]
    principals = Principals(b"a key")

    def principal(number: int):
        return principals.principal(f"Bearer {number:060000}")

    last = [endpoints.with_credentials(principal(number)) for number in range(100)]
    assert endpoints.with_credentials(principal(99)) is last[99]
    assert endpoints.with_credentials(principal(40)) is last[40]
    assert endpoints.with_credentials(principal(0)) is not last[0]
