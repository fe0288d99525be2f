"""Where metrics go: files, the terminal."""
