"""What the commands `reallm plugins check` and `reallm plugins new` do; the core declares them and calls these."""
