"""Copying or reversing of digit strings by a recurrent encoder-decoder."""
