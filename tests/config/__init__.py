"""Tests of `selftaught.config`."""
