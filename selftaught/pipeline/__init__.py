"""Plans of stages that start from the weights of other stages: hierarchical pretraining."""
