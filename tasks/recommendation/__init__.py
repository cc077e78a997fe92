"""Recommendation: which item a person takes next."""
