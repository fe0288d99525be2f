"""The Python API: the commands as functions of values and objects."""
