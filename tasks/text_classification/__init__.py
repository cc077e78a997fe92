"""Classification of texts by sentiment, topic or spam."""
