"""Public data sets that several tasks use."""
