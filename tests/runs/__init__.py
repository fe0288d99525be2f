"""Tests of `selftaught.runs`."""
