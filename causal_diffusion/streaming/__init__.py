"""Streaming: the jitted rollout, the session that a Python user holds, and the pipeline."""
