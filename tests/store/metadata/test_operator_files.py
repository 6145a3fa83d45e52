"""The list of images that are kept by the status page."""

import pytest

from mirror.store.metadata.operator_files import KeepList
from mirror.user_error import UserError


def test_the_list_survives_and_other_processes_see_changes(tmp_path):
    one, other = KeepList(tmp_path / "keep"), KeepList(tmp_path / "keep")
    assert not other.reread()
    one.change("docker.io/library/app:1", keep=True)
    one.change("docker.io/library/app:2", keep=True)
    one.change("docker.io/library/app:1", keep=False)
    assert other.reread()
    assert other.known == {"docker.io/library/app:2"}
    assert not other.reread()
    (tmp_path / "keep").unlink()
    assert other.reread()
    assert other.known == frozenset()


def test_a_list_that_cannot_be_read_stays_as_it_was(tmp_path):
    names = KeepList(tmp_path / "keep")
    names.change("docker.io/library/app:1", keep=True)
    names.reread()
    (tmp_path / "keep").write_bytes(b"\xff\xff")
    assert not names.reread()
    assert names.known == {"docker.io/library/app:1"}


def test_the_list_is_bounded(tmp_path):
    names = KeepList(tmp_path / "keep")
    (tmp_path / "keep").write_text("".join(f"docker.io/library/app:{n}\n" for n in range(1000)))
    with pytest.raises(UserError, match=r"1000 images are kept already: use \[\[keep\]\]"):
        names.change("docker.io/library/one:more", keep=True)
