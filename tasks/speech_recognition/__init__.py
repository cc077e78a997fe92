"""Speech recognition: from sound to the words that were said."""
