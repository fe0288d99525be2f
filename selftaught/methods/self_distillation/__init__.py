"""Methods that predict their own features of another view, without negatives."""
