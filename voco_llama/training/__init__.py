"""Training: what it reads, what it checks, how rows are ordered and divided, and the loop."""
