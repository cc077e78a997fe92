"""Recommendation of the next item for each user."""
