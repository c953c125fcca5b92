"""Where results come from: the command, the code, the machine and the data, without secrets."""
