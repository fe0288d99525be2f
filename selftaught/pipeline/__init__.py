"""Stages that begin from one another: hierarchical pretraining."""
