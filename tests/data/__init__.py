"""Tests of `selftaught.data`."""
