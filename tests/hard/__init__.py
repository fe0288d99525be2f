"""Tests of `selftaught.hard`."""
