"""Writing and reading the folder of a run."""
