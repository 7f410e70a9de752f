"""`voco-llama data prepare`: the public data sets, verified and ready to be read."""
