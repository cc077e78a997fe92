"""Training and evaluation of any task: configs, the train loop, checkpoints and logs."""
