"""What the KL term compares a student with, at hand or written to disk before."""
