"""Evaluation of features against those of other weights, by fixed protocols, with intervals."""
