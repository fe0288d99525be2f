"""Methods that predict the network's embedding of another view, without negatives."""
