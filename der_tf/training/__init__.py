"""Adversarial training: the Keras model, its runs, and what watches them."""
