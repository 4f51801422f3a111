"""The command ``skt``: evaluation, reconstruction, data sets, banks and training from a shell."""

from skt_components.commands.command_line import COMMANDS, main

__all__ = ["COMMANDS", "main"]
