"""Tar headers, against the standard library's own writer and against nonsense."""

import contextlib
import io
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.transfer.tar import BLOCK, DamagedTar, header, padding, read_member

NAME = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="\\"),
    min_size=1,
    max_size=300,
).filter(lambda name: name.strip("/ ") == name)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def members(data: bytes) -> list[tuple[str, bytes, bool]]:
    """Name, bytes and whether it is a plain file, of all that is in a tar."""
    stream, found = io.BytesIO(data), []
    while (member := read_member(stream.read)) is not None:
        content = stream.read(member.size + padding(member.size))
        if len(content) % BLOCK or len(content) < member.size:
            raise DamagedTar("it ends in a file")
        found.append((member.name, content[: member.size], member.is_file))
    return found


def tar(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@given(st.dictionaries(NAME, st.binary(max_size=1100), max_size=4), FORMATS)
def test_what_the_standard_library_wrote_is_read(files, form):
    assert members(tar(files, form)) == [(name, data, True) for name, data in files.items()]


@given(NAME, st.binary(max_size=1100))
def test_the_standard_library_reads_what_was_written(name, data):
    written = header(name, len(data)) + data + bytes(padding(len(data))) + bytes(2 * BLOCK)
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        (member,) = archive.getmembers()
        file = archive.extractfile(member)
        assert file is not None
        assert (member.name, file.read()) == (name, data)


@pytest.mark.parametrize("size", [8 << 30, 1 << 40])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_file_of_many_gigabytes_has_its_size(size, form):
    member = tarfile.TarInfo("large")
    member.size = size
    found = read_member(io.BytesIO(member.tobuf(form)).read)
    assert found is not None
    assert found.size == size
    ours = read_member(io.BytesIO(header("large", size)).read)
    assert ours is not None
    assert ours.size == size


@given(st.binary(max_size=3000))
def test_nonsense_is_damage_and_nothing_else(data):
    try:
        members(data)
    except DamagedTar:
        return
    assert not any(data[:BLOCK])
    assert len(data) >= BLOCK


@settings(max_examples=200)
@given(st.integers(0, 2000), st.integers(0, 255), FORMATS)
def test_a_flipped_byte_is_damage_or_another_tar_and_nothing_else(at, value, form):
    data = bytearray(tar({"a" * 120: b"x" * 600}, form))
    data[at] = value
    with contextlib.suppress(DamagedTar):
        assert len(members(bytes(data))) <= 3


@given(st.integers(0, 6 * BLOCK - 1))
def test_a_tar_that_ends_before_its_end_is_damaged(length):
    whole = tar({"a": b"x" * 600, "b": b"y"})
    with pytest.raises(DamagedTar):
        members(whole[:length])


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_name_that_says_it_is_huge_is_refused_before_it_is_read(kind):
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 1 << 33
    tracemalloc.start()
    with pytest.raises(DamagedTar, match="name is too long"):
        read_member(io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)).read)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("records", [b"0 a=b\n", b"99 a=b\n", b"x", b"5 a=b", b"7 size=-1\n"])
def test_a_pax_header_that_is_none_is_damage(records):
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    data = member.tobuf(tarfile.USTAR_FORMAT) + records + bytes(padding(len(records)))
    with pytest.raises(DamagedTar):
        members(data + tar({"a": b""}))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_what_is_no_plain_file_is_told_apart(kind):
    member = tarfile.TarInfo("x")
    member.type, member.linkname = kind, "/etc/passwd"
    found = read_member(io.BytesIO(member.tobuf()).read)
    assert found is not None
    assert (found.is_file, found.size) == (False, 0)
