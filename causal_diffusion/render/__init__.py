"""Pictures of results: video files, contact sheets, curves, clips for TensorBoard."""
