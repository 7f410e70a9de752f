"""`voco-llama data check`: what is wrong with a training's data."""
