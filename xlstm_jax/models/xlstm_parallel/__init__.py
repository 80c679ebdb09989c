"""The xLSTM: its stack of blocks, and the language model around it."""
