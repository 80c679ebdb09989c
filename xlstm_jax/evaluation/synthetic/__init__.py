"""Synthetic tasks: what a memory can track and recall, measured at lengths beyond those of training."""
