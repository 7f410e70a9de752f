"""The model: vision tower, projector, language model, and the VoCo cache."""
