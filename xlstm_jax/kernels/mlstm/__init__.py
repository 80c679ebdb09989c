"""The mLSTM cell as pure functions on arrays; see README.md beside this file for the equations."""

from xlstm_jax.kernels.mlstm.api import implementations, mlstm, mlstm_step, pick_implementation
from xlstm_jax.kernels.mlstm.state import MLSTMState, zero_state

__all__ = ["MLSTMState", "implementations", "mlstm", "mlstm_step", "pick_implementation", "zero_state"]
