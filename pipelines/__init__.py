"""The shell around the cores: sets on disk, processes and commands."""

__version__ = "0.1.0"
