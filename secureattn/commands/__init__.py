"""What the command line does, a command a file; ``cli`` parses and calls."""
