"""The CA is made once, kept for one pair of eyes, and the same for whoever asks."""

import contextlib
import logging
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
