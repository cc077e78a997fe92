"""Training and evaluation of any task: configs, the training loop, checkpoints and logs."""
