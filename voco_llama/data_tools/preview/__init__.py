"""`voco-llama data preview`: samples as the model will see them."""
