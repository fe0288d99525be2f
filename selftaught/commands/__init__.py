"""The commands, by what they are about; `selftaught.cli` calls them."""
