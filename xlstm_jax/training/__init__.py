"""From an experiment to a trained run: step, loop, optimizers, events, and opening a run."""
