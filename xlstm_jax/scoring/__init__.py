"""One scorer for text and for rows of tokens, and the baselines beside it."""
