"""The run folder: config, lock, checkpoints, metrics (see `xlstm_jax.runs.folder`)."""
