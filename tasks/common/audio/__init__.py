"""Sound files, log-mel features, audio augmentation."""
