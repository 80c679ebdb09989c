"""The mLSTM: block, layers, cell, and the choice of its kernel."""
