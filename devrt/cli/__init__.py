"""The command line: arguments, tables and exit codes; the work is done elsewhere."""
