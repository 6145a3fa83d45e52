"""A cache directory to work on."""

import pytest

from mirror.store.local.layout import Layout


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path / "cache")
    layout.ensure()
    return layout
