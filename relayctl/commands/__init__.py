"""The commands of relayctl: one module each, with the command's options at the top; loaded when the command is used."""
