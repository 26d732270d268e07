"""How noise comes and goes: process, levels, schedule, solvers, guidance. Pure math, no parameters."""
