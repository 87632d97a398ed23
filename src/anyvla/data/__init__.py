"""Episodes in, batches out: sources, frame store, windows, sampler, transforms, statistics, writers."""
