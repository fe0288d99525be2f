"""The command line, with one command in each file."""
