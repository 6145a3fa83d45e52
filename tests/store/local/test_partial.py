"""Files that grow, and who may make them grow."""

import os

import pytest

from mirror.oci.digest import Digest
from mirror.store.interface import PartialBusyError
from mirror.store.local.partial import Partial

DATA = b"some content"
DIGEST = Digest.of(DATA)


def test_what_an_earlier_fill_left_is_taken_up_and_hashed(tmp_path):
    first = Partial(tmp_path / "p", DIGEST)
    first.write([DATA[:4]])
    first.close()
    second = Partial(tmp_path / "p", DIGEST)
    assert (second.length, second.verified()) == (4, False)
    second.write([DATA[4:6], DATA[6:]])
    assert (second.length, second.verified()) == (len(DATA), True)
    second.close()


def test_only_one_leads_at_a_time(tmp_path):
    leader = Partial(tmp_path / "p", DIGEST)
    with pytest.raises(PartialBusyError):
        Partial(tmp_path / "p", DIGEST)
    leader.close()
    Partial(tmp_path / "p", DIGEST).close()


def test_a_slow_reader_does_not_keep_the_lead_taken(tmp_path):
    """flock belongs to the open file, which a duplicated descriptor shares."""
    leader = Partial(tmp_path / "p", DIGEST)
    reader = leader.content.duplicate()
    leader.close()
    Partial(tmp_path / "p", DIGEST).close()
    reader.close()


def test_a_reader_keeps_its_bytes_when_the_file_goes(tmp_path):
    partial = Partial(tmp_path / "p", DIGEST)
    partial.write([DATA])
    reader = partial.content.duplicate()
    partial.discard()
    partial.close()
    assert os.pread(reader.descriptor.fileno(), 100, 0) == DATA
    reader.close()


def test_a_readers_position_does_not_move_the_writer(tmp_path):
    """sendfile moves the position of the open file that reader and writer share."""
    partial = Partial(tmp_path / "p", DIGEST)
    partial.write([DATA[:4]])
    reader = partial.content.duplicate()
    os.lseek(reader.descriptor.fileno(), 0, os.SEEK_SET)
    partial.write([DATA[4:]])
    assert os.pread(reader.descriptor.fileno(), 100, 0) == DATA
    reader.close()
    partial.close()


def test_restarting_forgets_bytes_and_hash(tmp_path):
    partial = Partial(tmp_path / "p", DIGEST)
    partial.write([b"wrong"])
    partial.truncate()
    partial.write([DATA])
    assert partial.verified()
    partial.close()
