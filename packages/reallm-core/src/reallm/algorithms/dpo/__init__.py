"""Preference optimisation: DPO and its kin."""
