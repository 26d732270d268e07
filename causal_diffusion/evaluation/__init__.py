"""Metrics on arrays. A metric that needs a network takes it as an `embed` function; nothing is downloaded."""
