"""The LSTM of the textbooks, to compare with."""
