"""The Python API: what the commands do, with values and objects in place of words."""
