"""Adversarial training: the Keras model, outer losses and penalties."""
