"""The sLSTM: block, layer and cell."""
