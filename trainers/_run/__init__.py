"""One lifecycle for every trainer: checkpoints, guards, signals, the hang watch, sharding, model, reference, card."""
