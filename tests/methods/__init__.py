"""Tests of `selftaught.methods`."""
