"""Skeletons and representations of human motion: numpy and jax math, without parameters."""
