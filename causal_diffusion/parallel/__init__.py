"""Where arrays live: the device mesh and the rules that spread parameters over it."""
