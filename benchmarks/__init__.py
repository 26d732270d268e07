"""What is measured: cases with a command line (``python -m benchmarks``), and scripts that run by themselves."""
