"""Readers of records, one file a format, and how what they read through is kept."""
