"""Suites that measure what a model can do, one folder each, and the check of the kernels."""
