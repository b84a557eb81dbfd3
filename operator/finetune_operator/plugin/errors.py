"""What ends a command with one sentence."""


class PluginError(Exception):
    """Nothing more can be done; the message says what was found, what was expected, and the fix."""
