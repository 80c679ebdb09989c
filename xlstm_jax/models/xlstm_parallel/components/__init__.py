"""Parts that blocks are made of: convolution, feed-forward layer, headwise map, norms."""
