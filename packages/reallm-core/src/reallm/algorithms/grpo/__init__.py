"""Group-relative policy optimisation and its kin, composed of parts that can be chosen."""
