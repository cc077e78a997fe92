"""Train steps compared with other libraries, one file per model."""
