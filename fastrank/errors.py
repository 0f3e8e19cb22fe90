"""The one exception for a user's mistake; the command line prints it as one line and exits with 2."""

from __future__ import annotations


class InputError(ValueError):
    """An argument is wrong: the message names it, what was expected and what came."""

    def __init__(self, argument: str, expected: str, got: object, cure: str = "") -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}" + (f"; {cure}" if cure else ""))

    @classmethod
    def quoting(cls, error: Exception) -> InputError:
        """The same message, where a validator of fastrank.kernels has found the mistake."""
        quoted = cls.__new__(cls)
        ValueError.__init__(quoted, str(error))
        return quoted
