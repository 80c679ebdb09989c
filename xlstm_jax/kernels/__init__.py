"""The cells and the loss as functions of arrays: no Flax, no configs."""
