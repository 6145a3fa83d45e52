"""The CA of proxy mode: its file, and the certificates that it signs."""

import contextlib
import logging
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from mirror.ca import CertificateIssuer, ensure_authority, new_authority
from mirror.user_error import UserError

CHILD = """
import pathlib, sys
from mirror.ca import ensure_authority
print(ensure_authority(pathlib.Path(sys.argv[1]), "mirror").certificate.serial_number)
"""


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_on_first_use_for_the_owner_alone(tmp_path):
    directory = tmp_path / "cache" / "proxy"
    first = ensure_authority(directory, "mirror")
    assert mode(directory) == 0o700
    assert mode(tmp_path / "cache") == 0o700
    assert [mode(file) for file in sorted(directory.iterdir())] == [0o600, 0o600]
    assert ensure_authority(directory, "another name").pem() == first.pem()
    assert b"PRIVATE" not in first.public_pem()


def test_a_ca_in_the_cache_directory_moves_once_and_says_so(tmp_path, caplog):
    place, former = tmp_path / "state", tmp_path / "cache" / "proxy"
    made = ensure_authority(former, "mirror")
    for _ in range(2):
        assert ensure_authority(place, "mirror", former=former).pem() == made.pem()
    assert mode(place / "ca.pem") == 0o600
    assert mode(place) == 0o700
    assert not (former / "ca.pem").exists()
    (line,) = caplog.messages
    assert f"moved from {former}/ca.pem to {place}/ca.pem" in line


def test_a_ca_that_cannot_move_is_used_where_it_is(tmp_path, caplog):
    place, former = tmp_path / "file" / "state", tmp_path / "cache" / "proxy"
    (tmp_path / "file").write_text("")
    made = ensure_authority(former, "mirror")
    assert ensure_authority(place, "mirror", former=former).pem() == made.pem()
    assert (former / "ca.pem").exists()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_ca_is_made_in_the_cache_directory_if_no_other_can_be_written(tmp_path):
    place, former = tmp_path / "file" / "state", tmp_path / "cache" / "proxy"
    (tmp_path / "file").write_text("")
    made = ensure_authority(place, "mirror", former=former)
    assert ensure_authority(former, "mirror").pem() == made.pem()


@pytest.mark.parametrize("linked", [True, False])
def test_a_ca_of_another_file_system_is_copied(tmp_path, caplog, linked):
    former = tmp_path / "cache" / "proxy"
    made = ensure_authority(former, "mirror")
    if linked:
        (former / "ca.pem").rename(tmp_path / "cache" / "linked.pem")
        (former / "ca.pem").symlink_to("../linked.pem")
    with contextlib.ExitStack() as stack:
        place = tmp_path if linked else Path(stack.enter_context(on_shared_memory(tmp_path)))
        assert ensure_authority(place / "state", "mirror", former=former).pem() == made.pem()
        assert ensure_authority(former, "mirror").pem() == made.pem(), "it may be on a volume"
    assert "was copied from" in caplog.text


@contextlib.contextmanager
def on_shared_memory(other: Path) -> Iterator[str]:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == other.stat().st_dev:
        pytest.skip("this machine has no other file system to write to")
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield directory


def test_an_unreadable_ca_is_not_replaced_by_another(tmp_path):
    place, former = tmp_path / "state", tmp_path / "cache" / "proxy"
    (place / "ca.pem").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{place}/ca.pem: Is a directory"):
        ensure_authority(place, "mirror", former=former)
    assert not former.exists()


def test_processes_that_come_at_once_agree(tmp_path):
    def child(_: int) -> str:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "ca")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as threads:
        serials = set(threads.map(child, range(4)))
    assert len(serials) == 1
    assert sorted(file.name for file in (tmp_path / "ca").iterdir()) == ["ca.lock", "ca.pem"]


def test_one_of_a_company_is_used_where_it_is_put(tmp_path):
    root = trustme.CA()
    office = root.create_child_ca()
    chain = office.cert_pem.bytes() + root.cert_pem.bytes()
    (tmp_path / "ca.pem").write_bytes(office.private_key_pem.bytes() + chain)
    (tmp_path / "ca.pem").chmod(0o600)
    assert ensure_authority(tmp_path, "mirror").public_pem() == chain


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a private key"),
        (b"nonsense", "not a private key"),
        (trustme.CA().private_key_pem.bytes(), "not a private key"),
        (
            trustme.CA().private_key_pem.bytes() + trustme.CA().cert_pem.bytes(),
            "does not belong to",
        ),
    ],
)
def test_what_is_no_ca_is_told_with_its_file(tmp_path, content, said):
    (tmp_path / "ca.pem").write_bytes(content)
    (tmp_path / "ca.pem").chmod(0o600)
    with pytest.raises(UserError, match=said) as told:
        ensure_authority(tmp_path, "mirror")
    assert str(tmp_path / "ca.pem") in str(told.value)
    assert "\n" not in str(told.value)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    ensure_authority(tmp_path, "mirror")
    (tmp_path / "ca.pem").chmod(0o640)
    with pytest.raises(UserError, match=r"chmod 600 /.*ca\.pem"):
        ensure_authority(tmp_path, "mirror")


def test_one_whose_time_is_over_is_told(tmp_path):
    ensure_authority(tmp_path, "mirror")
    with pytest.raises(UserError, match=r"remove it, and the mirror makes a new CA"):
        ensure_authority(tmp_path, "mirror", lambda: datetime.now(UTC) + timedelta(days=4000))


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="ca_directory names another place"):
        ensure_authority(tmp_path / "file" / "ca", "mirror")


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
