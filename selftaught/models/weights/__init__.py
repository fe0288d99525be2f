"""Weights of networks: read from every tool's files, and written."""
