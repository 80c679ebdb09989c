"""Formal languages: what a memory can track, measured at lengths beyond those of training."""
