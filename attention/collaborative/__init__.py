"""Attention for collaborative filtering: over similar users, and over the items of a history."""
