"""The command line. Nothing heavy is imported at the top of any module here."""
