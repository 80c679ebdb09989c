"""Configs and Flax modules: blocks, stacks of them, and language models."""
