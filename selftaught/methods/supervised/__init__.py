"""Methods that train on labels."""
