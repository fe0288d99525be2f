"""Methods that use labels."""
