"""Classification of pictures, by convolutional networks and by a Vision Transformer."""
