"""Parts of open files."""

import os

import pytest

from mirror.descriptor import Descriptor, FileRange


def opened(path) -> FileRange:
    return FileRange(Descriptor(os.open(path, os.O_RDONLY)), 0, path.stat().st_size)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def test_a_part_has_its_own_bytes_of_the_same_file(file):
    whole = opened(file)
    assert (whole.read(), whole.part(3, 5).read()) == (b"0123456789", b"34")
    whole.close()


def test_pieces_are_the_bytes_up_to_the_end_of_the_file(file):
    whole = opened(file)
    assert b"".join(whole.part(2, 5).pieces()) == b"234"
    assert b"".join(whole.part(8, 1 << 40).pieces()) == b"89"
    file.write_bytes(bytes(3 << 20))
    assert [len(piece) for piece in whole.part(0, 5 << 19).pieces()] == [1 << 20, 1 << 20, 1 << 19]
    whole.close()


def test_a_duplicate_is_readable_after_the_first_range_is_closed(file):
    whole = opened(file)
    copy = whole.part(2, 4).duplicate()
    whole.close()
    assert copy.read() == b"23"
    copy.close()
    with pytest.raises(OSError, match="closed"):
        copy.read()


def test_a_renamed_file_is_the_same_and_a_copy_is_not(file, tmp_path):
    before = opened(file)
    file.rename(tmp_path / "renamed")
    after = opened(tmp_path / "renamed")
    file.write_bytes(b"0123456789")
    copy = opened(file)
    assert before.is_same_file(after)
    assert not before.is_same_file(copy)
    for each in (before, after, copy):
        each.close()
