"""Sources of clips and the pipelines that turn them into batches: numpy in, numpy out."""
