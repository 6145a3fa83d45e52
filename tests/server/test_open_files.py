"""Bounds that fit into the open files that the system allows."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.server.open_files import Bounds, fitted

COUNT = st.integers(1, 100_000)


@given(COUNT, COUNT, st.integers(0, 100_000), st.booleans(), st.integers(256, 2_000_000))
def test_what_is_given_fits_and_is_no_more_than_was_wanted(
    connections, downloads, tunnels, hot, files
):
    wanted = Bounds(connections, downloads, tunnels, hot)
    given = fitted(wanted, files)
    assert given.files <= files
    assert given == wanted or wanted.files > files
    assert 1 <= given.connections <= connections
    assert 1 <= given.downloads <= downloads
    assert bool(tunnels) <= given.tunnels <= tunnels
    assert hot >= given.hot
