"""The CA is made once, kept for one pair of eyes, and the same for whoever asks."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from mirror.ca.files import ensure_authority
from mirror.user_error import UserError

CHILD = """
import pathlib, sys
from mirror.ca.files import ensure_authority
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
