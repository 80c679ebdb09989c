"""What a text costs under a run: in bits per byte, by document, by position."""
