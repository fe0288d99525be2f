"""Tests of `selftaught.training`."""
