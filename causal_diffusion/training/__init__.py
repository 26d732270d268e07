"""Training: state, objectives, the jitted step, and the loop around it."""
