"""Tests of `selftaught.evaluation`."""
