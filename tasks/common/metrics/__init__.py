"""Metrics of classification, translation and transcription."""
