"""Cases on two processor cores in float32: ratios of times that were taken in one run."""
