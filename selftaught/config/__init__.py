"""The configuration of a stage: values, names, defaults and JSON."""
