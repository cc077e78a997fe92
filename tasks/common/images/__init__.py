"""Image files and image augmentation."""
