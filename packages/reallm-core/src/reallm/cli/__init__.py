"""The command line. Its modules import nothing heavy at the top."""
