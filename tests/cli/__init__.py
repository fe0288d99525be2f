"""Tests of `selftaught.cli`."""
