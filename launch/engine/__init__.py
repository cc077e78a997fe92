"""What the verbs share: config, loop, state, optimizers, sharding, checkpoints, writers."""
