"""What the machine has and does: cores, memory, signals, peak, kept programs, progress."""
