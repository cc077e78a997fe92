"""Applications of attention: one folder a task, and what they share in `tasks.common`."""
