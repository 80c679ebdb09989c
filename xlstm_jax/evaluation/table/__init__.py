"""Whole tables: models side by side at several things, over seeds, with what papers publish beside them."""
