"""Cases on one H100 or H200 in bfloat16: absolute times, and which share of the hardware's limit they reach."""
