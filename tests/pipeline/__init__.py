"""Tests of `selftaught.pipeline`."""
