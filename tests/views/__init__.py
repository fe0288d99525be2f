"""Tests of `selftaught.views`."""
