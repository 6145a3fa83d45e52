"""What is minted passes with clients that trust the CA, for its host and for no other."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from mirror.ca.signing import CertificateIssuer, new_authority


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What a client that wants ``name`` is shown.

    Raises:
        ssl.SSLError: it does not accept it.
    """
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(far, server_side=True).close()
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as secure:
            return secure.getpeercert(binary_form=True) or b""
    finally:
        near.close()
        thread.join()


@pytest.fixture
def authority():
    return new_authority("mirror", datetime.now(UTC))


def trusting(authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.public_pem().decode())
    context.verify_flags |= getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


@pytest.mark.parametrize(
    "host", ["registry-1.docker.io", "127.0.0.1", "::1", "a" * 63 + "." + "b" * 63 + ".example"]
)
def test_a_client_that_trusts_the_ca_accepts_its_host_and_no_other(authority, host):
    context = CertificateIssuer(authority).context(host)
    assert handshake(context, trusting(authority), host)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"match|mismatch"):
        handshake(context, trusting(authority), "other.example.com")


def test_a_client_that_trusts_another_ca_does_not(authority):
    other = new_authority("mirror", datetime.now(UTC))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(CertificateIssuer(authority).context("r.example"), trusting(other), "r.example")


def test_a_certificate_is_kept_until_shortly_before_its_end():
    now = datetime.now(UTC) - timedelta(days=61)
    authority = new_authority("mirror", now)
    mint = CertificateIssuer(authority, lambda: now)
    first = mint.context("r.example")
    now += timedelta(days=59)
    assert mint.context("r.example") is first
    now += timedelta(days=2)
    second = mint.context("r.example")
    assert second is not first
    shown = x509.load_der_x509_certificate(handshake(second, trusting(authority), "r.example"))
    assert shown.not_valid_after_utc > now + timedelta(days=80)


def test_what_it_signs_is_no_ca(authority):
    shown = handshake(
        CertificateIssuer(authority).context("r.example"), trusting(authority), "r.example"
    )
    certificate = x509.load_der_x509_certificate(shown)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    limits = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.value.ca, limits.value.path_length) == (True, 0)
