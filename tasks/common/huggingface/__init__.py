"""Conversion of BERT weights, configs and tokenizers to and from Hugging Face files."""
