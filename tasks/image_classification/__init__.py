"""Classification of small pictures by a Vision Transformer."""
