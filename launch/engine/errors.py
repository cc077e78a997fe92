"""What ends a run early without being a mistake."""


class Interrupted(Exception):
    """Training was asked to stop, and has saved where it stands."""

    def __init__(self, step: int, signal_number: int):
        """Args: finished steps; number of the signal that asked."""
        super().__init__(f"stopped after step {step}; the same command goes on from there")
        self.signal_number = signal_number
