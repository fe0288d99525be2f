"""Methods that keep the dimensions of features apart."""
