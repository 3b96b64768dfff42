"""Parameter reallocation: planning and executing the move of parameters from one layout to another."""
