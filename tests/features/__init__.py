"""Tests of `selftaught.features`."""
