"""The commands: one thin module each, which parses, calls one function and prints."""
