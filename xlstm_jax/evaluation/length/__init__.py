"""Loss by position, to many times the length of training."""
