"""The verbs a person types: `python -m launch.<verb> --help`."""
