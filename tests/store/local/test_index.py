"""The index, the odd behaviours of diskcache it rests on, and what a crash leaves."""

import errno
import os
import pickle
import signal
import sqlite3
import subprocess
import sys

import pytest

from mirror.oci.digest import Digest
from mirror.oci.media_types import OCI_INDEX
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import BLOBS, MANIFESTS, PRIVATE_BLOBS, Layout, ObjectKey


def staged(layout: Layout, data: bytes, kind: str = BLOBS):
    """A whole file in partial/, its key and size."""
    key = ObjectKey(kind, Digest.of(data))
    path = layout.partial_of(key)
    path.write_bytes(data)
    return key, path, len(data)


def test_an_adopted_file_is_moved_not_copied(layout):
    index = ObjectIndex(layout)
    key, path, size = staged(layout, b"content")
    inode = path.stat().st_ino
    entry = index.adopt(key, path, size)
    assert entry.path.stat().st_ino == inode
    assert not path.exists()
    assert list(layout.pending.iterdir()) == []
    assert index.lookup(key) == entry
    assert (index.count(), index.total_bytes()) == (1, 4096), "a file takes whole blocks"


def test_adopting_the_same_content_again_keeps_a_file(layout):
    """diskcache removes the former file of a key after it wrote the new one."""
    index = ObjectIndex(layout)
    for _ in range(2):
        key, path, size = staged(layout, b"content")
        entry = index.adopt(key, path, size)
    assert entry.path.read_bytes() == b"content"
    files = [file for file in (layout.root / BLOBS).rglob("*") if file.is_file()]
    assert files == [entry.path]
    assert (index.count(), index.total_bytes()) == (1, 4096)


@pytest.mark.parametrize("kinds", [(BLOBS, PRIVATE_BLOBS), (PRIVATE_BLOBS, BLOBS)])
def test_a_blob_is_stored_once_whichever_copy_comes_first(layout, kinds):
    index = ObjectIndex(layout)
    for kind in kinds:
        index.adopt(*staged(layout, b"content", kind))
    files = [file for kind in kinds for file in (layout.root / kind).rglob("*") if file.is_file()]
    assert [file.parts[-4] for file in files] == [BLOBS]
    assert list(layout.partial.iterdir()) == []
    assert index.count() == 1


def test_removing_an_object_removes_row_and_file(layout):
    index = ObjectIndex(layout)
    entry = index.adopt(*staged(layout, b"content"))
    assert index.remove(entry.key) == len(b"content")
    assert index.remove(entry.key) == 0
    assert not entry.path.exists()
    assert list(layout.pending.iterdir()) == []
    assert (index.count(), index.total_bytes()) == (0, 0)


def test_the_oldest_is_what_was_used_longest_ago(layout):
    index = ObjectIndex(layout)
    keys = [index.adopt(*staged(layout, name)).key for name in (b"a", b"b", b"c")]
    index.touch({keys[0]: 3e9, keys[1]: 1e9, keys[2]: 2e9})
    assert index.oldest(2) == [(keys[1], 1e9), (keys[2], 2e9)]


def test_a_lookup_writes_nothing(layout):
    """diskcache's LRU get is a write transaction; ours must not be."""
    index = ObjectIndex(layout)
    key = index.adopt(*staged(layout, b"content")).key
    with sqlite3.connect(layout.root / "cache.db") as other:
        other.execute("BEGIN IMMEDIATE")  # holds the write lock
        assert index.lookup(key) is not None
    with sqlite3.connect(layout.root / "cache.db") as other:
        before = other.execute("SELECT access_time, access_count FROM Cache").fetchall()
        index.lookup(key)
        assert other.execute("SELECT access_time, access_count FROM Cache").fetchall() == before


def test_two_processes_see_each_others_objects(layout):
    ours, theirs = ObjectIndex(layout), ObjectIndex(layout)
    entry = ours.adopt(*staged(layout, b"content"))
    assert theirs.lookup(entry.key) == entry
    theirs.remove(entry.key)
    assert ours.lookup(entry.key) is None


def test_a_pickled_row_is_never_loaded(layout):
    """CVE-2025-69872: whoever can write the directory must not run code through diskcache."""
    index = ObjectIndex(layout)
    key = index.adopt(*staged(layout, b"content")).key
    bomb = pickle.dumps(print)
    with sqlite3.connect(layout.root / "cache.db") as other:
        other.execute("UPDATE Cache SET mode = 4, filename = NULL, value = ?", (bomb,))
    with pytest.raises(TypeError, match="unpickled"):
        index.lookup(key)


def test_a_damaged_database_is_said_to_be_unusable(layout):
    ObjectIndex(layout).close()
    (layout.root / "cache.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(IndexUnavailableError):
        ObjectIndex(layout)


def test_the_directory_is_the_owners_alone(layout):
    assert layout.root.stat().st_mode & 0o777 == 0o700


def test_a_file_system_without_hard_links_is_told_at_the_start(layout, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(OSError, match="no hard links"):
        layout.ensure()
    assert list(layout.partial.iterdir()) == []


CRASHES = {
    "before the link": "os.link = die",
    "after the link, before the row": "diskcache.Cache._transact = die",
    "after the row, before pending is cleared": "pathlib.Path.unlink = die",
}


@pytest.mark.parametrize("step", CRASHES)
def test_an_adoption_cut_short_is_finished_at_the_next_start(layout, step):
    """SIGKILL at each step: what was whole is not lost, and nothing is left over."""
    key, _, size = staged(layout, b"content")
    ObjectIndex(layout).close()
    crash(layout, f"index.adopt(key, layout.partial_of(key), {size})", CRASHES[step])
    index = ObjectIndex(layout)
    index.repair()
    entry = index.lookup(key)
    assert entry is not None
    assert entry.path.read_bytes() == b"content"
    assert_in_agreement(layout, index)


def test_an_adoption_over_what_was_there_cut_short_leaves_no_orphan(layout):
    """By itself diskcache removes the former file last."""
    index = ObjectIndex(layout)
    index.adopt(*staged(layout, b"content"))
    index.close()
    _, _, size = staged(layout, b"content")
    crash(layout, f"index.adopt(key, layout.partial_of(key), {size})", "_ObjectDisk.remove = die")
    index = ObjectIndex(layout)
    index.repair()
    assert_in_agreement(layout, index)


@pytest.mark.parametrize(
    ("step", "there"),
    [
        ("diskcache.Cache.delete = die", True),
        ("diskcache.Disk.remove = _ObjectDisk.remove = die", False),
        ("pathlib.Path.unlink = die", False),
    ],
    ids=["before the row goes", "after the row, before the file", "before pending is cleared"],
)
def test_an_eviction_cut_short_is_undone_or_finished_at_the_next_start(layout, step, there):
    index = ObjectIndex(layout)
    key = index.adopt(*staged(layout, b"content")).key
    index.close()
    crash(layout, "index.remove(key)", step)
    index = ObjectIndex(layout)
    index.repair()
    assert (index.lookup(key) is not None) is there
    assert_in_agreement(layout, index)


def test_a_manifest_keeps_its_media_type_over_a_repair(layout):
    key, path, _ = staged(
        layout,
        f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}'.encode(),
        MANIFESTS,
    )
    os.rename(path, layout.pending / f"adopt.{key}.0011aabb")
    index = ObjectIndex(layout)
    index.repair()
    entry = index.lookup(key)
    assert entry is not None
    assert entry.media_type == OCI_INDEX


def crash(layout: Layout, action: str, fatal: str) -> None:
    """Do ``action`` in a child that is killed where ``fatal`` replaced a step."""
    script = f"""
import os, pathlib, signal, diskcache
from mirror.oci.digest import Digest
from mirror.store.local.sqlite import _ObjectDisk
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import BLOBS, Layout, ObjectKey
layout = Layout(pathlib.Path({str(layout.root)!r}))
key = ObjectKey(BLOBS, Digest.of(b"content"))
index = ObjectIndex(layout)
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{fatal}
{action}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def assert_in_agreement(layout: Layout, index: ObjectIndex) -> None:
    """Every row has its file, every file its row, nothing is pending."""
    assert list(layout.pending.iterdir()) == []
    files = {file for file in (layout.root / BLOBS).rglob("*") if file.is_file()}
    rows = {(row := index.lookup(key)) and row.path for key, _ in index.oldest(100)}
    assert files == rows
