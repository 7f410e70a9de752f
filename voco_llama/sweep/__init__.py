"""Sweeps: all rows of a table, trained and evaluated, over seeds."""
