"""Tests of `selftaught.report`."""
