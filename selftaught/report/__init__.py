"""Reports of runs: an HTML page and tables for the terminal."""
