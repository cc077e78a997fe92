"""Attention over neighbours: over users who are alike, and over the items that a user had."""
