"""The command `reallm plugins` and its subcommands."""
