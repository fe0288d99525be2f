"""Short names for the types of pytest's fixtures."""

import pytest

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Places = pytest.TempPathFactory
