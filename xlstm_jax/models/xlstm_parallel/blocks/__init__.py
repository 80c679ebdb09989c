"""The blocks of an xLSTM, one folder a cell."""
