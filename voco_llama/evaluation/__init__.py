"""From checkpoints and benchmark files to answers, scores, retention and tables."""
