"""Tests of `selftaught.models`."""
