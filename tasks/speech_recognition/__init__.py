"""Speech recognition: from recordings to transcripts."""
