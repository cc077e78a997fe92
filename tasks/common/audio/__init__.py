"""Audio files, log-mel features and audio augmentation."""
