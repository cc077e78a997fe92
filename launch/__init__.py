"""Commands: `python -m launch.<command> --help`."""
