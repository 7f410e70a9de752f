"""`voco-llama data stats`: how much there is in a training's data."""
