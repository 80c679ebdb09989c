"""The sLSTM cell as pure functions on arrays; see README.md beside this file for the equations."""

from xlstm_jax.kernels.slstm.api import implementations, pick_implementation, slstm, slstm_step
from xlstm_jax.kernels.slstm.state import GATES, SLSTMState, zero_state

__all__ = ["GATES", "SLSTMState", "implementations", "pick_implementation", "slstm", "slstm_step", "zero_state"]
