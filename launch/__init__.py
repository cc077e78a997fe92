"""Commands of the project, run as `python -m launch.<command>`; `--help` lists the flags."""
