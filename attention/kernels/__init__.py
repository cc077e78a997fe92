"""Ways to compute `attention.attend`, one file each, all with its signature."""
