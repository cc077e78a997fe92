"""User files that are changed at random: every reader gives the right result or one clear line."""
