"""What the memory of a model does with a text: what it forgets, writes and holds."""
