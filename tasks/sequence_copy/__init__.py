"""Reversing strings of digits by a recurrent encoder-decoder."""
