"""What stands behind the command line. Heavy imports wait until a command runs."""
