"""Objectives: each turns (parameters, batch, key) into a scalar to minimise."""
