"""Conversion of BERT and RoBERTa weights, configs and tokenizers to and from Hugging Face files."""
