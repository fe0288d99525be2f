"""Fixtures of all tests of data."""

from pathlib import Path

import pytest

from selftaught.data.parquet import row_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and an empty cache of row groups."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row_cache._cache.reset()
    return tmp_path / "cache"
