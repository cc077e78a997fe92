"""Applications of attention: one folder per task, and shared code in `tasks.common`."""
