"""Loggers: they write metrics to files, to the terminal and to tracking services."""
