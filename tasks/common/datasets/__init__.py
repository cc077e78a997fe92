"""Public data sets that are used by several tasks."""
