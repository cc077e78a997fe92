"""Networks that are shared by several tasks."""
