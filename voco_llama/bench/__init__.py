"""`voco-llama bench`: how fast training, compressing, answering and loading are, in ratios from alternating rounds."""
