"""`voco-llama doctor`: what stands in the way of a training, before anything heavy is loaded."""
