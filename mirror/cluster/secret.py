"""The secret that all replicas have: it signs what they tell each other."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from mirror.oci.errors import ErrorCode, OciError

#: How long a former secret signs after a change, and how long it is accepted after that.
HANDOVER_SECONDS: Final = 300
#: The most difference between the clocks of two replicas, in seconds.
_SKEW_SECONDS: Final = 300
_MOST_FIELD: Final = 100  # characters


class Secret:
    """Signs with the secret that all replicas have.

    After a change the former secret signs for some minutes, in which the other replicas get the new
    one, and is accepted for as long again.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = self._former = hashlib.sha256(secret).digest()
        self._changed = -math.inf
        self._clock = clock

    def change(self, secret: bytes) -> bool:
        """Use another secret; return whether it is another one."""
        key = hashlib.sha256(secret).digest()
        if key == self._key:
            return False
        self._key, self._former, self._changed = key, self._signing(), self._clock()
        return True

    def sign(self, *parts: str) -> str:
        """Return the signature of texts, none of which has a line break."""
        return _signature(self._signing(), parts)

    def knows(self, signature: str, *parts: str) -> bool:
        """Whether a replica has signed these texts."""
        accepted = [self._key]
        if self._clock() - self._changed < 2 * HANDOVER_SECONDS:
            accepted.append(self._former)
        said = signature.encode(errors="replace")
        return any(hmac.compare_digest(_signature(key, parts).encode(), said) for key in accepted)

    def _signing(self) -> bytes:
        handover = self._clock() - self._changed < HANDOVER_SECONDS
        return self._former if handover else self._key

    def key(self, purpose: str) -> bytes:
        """Return a key of 32 bytes for encryption (HKDF, RFC 5869)."""
        return HKDFExpand(SHA256(), 32, purpose.encode()).derive(self._signing())

    def field(self, method: str, path: str, span: str) -> str:
        """Return REPLICA_FIELD of a request: the time (Unix seconds) and a signature.

        ``span`` is the Range field, or the CONTENT_DIGEST field of a POST.
        """
        now = str(int(self._clock()))
        return f"{now} {self.sign('request', now, method, path, span)}"

    def check(self, field: str, method: str, path: str, span: str) -> None:
        """Check the field of a request.

        Raises:
            OciError: another replica did not send the request, or not now (403).
        """
        then, _, signature = field[:_MOST_FIELD].partition(" ")
        if not self.knows(signature, "request", then, method, path, span):
            text = "the signature is wrong: do all replicas have the same [cluster] secret_file?"
            raise OciError(ErrorCode.DENIED, text, status=403)
        if abs(self._clock() - int(then)) > _SKEW_SECONDS:
            text = "the request is too old: do the clocks of all replicas agree?"
            raise OciError(ErrorCode.DENIED, text, status=403)


def _signature(key: bytes, parts: Sequence[str]) -> str:
    # A request of a stranger may have bytes that are no text.
    text = "\n".join(parts).encode(errors="surrogatepass")
    return hmac.new(key, text, hashlib.sha256).hexdigest()
