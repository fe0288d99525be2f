"""The commands, by what they are about; `selftaught.cli.main` calls them."""
