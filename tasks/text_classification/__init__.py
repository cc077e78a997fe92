"""Sentiment, topic and spam: texts to classes."""
