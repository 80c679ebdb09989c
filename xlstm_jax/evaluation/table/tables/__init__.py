"""The tables, a module each with its `table(options)`."""
