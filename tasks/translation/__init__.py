"""Translation of sentences by a Transformer or a recurrent encoder-decoder."""
