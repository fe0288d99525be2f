"""Tests of `selftaught.study`."""
