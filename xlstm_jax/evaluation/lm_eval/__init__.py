"""Tasks of the lm-evaluation-harness: as a command of ours, and as a model of the harness."""
