"""Proximal policy optimisation: a policy and a critic trained on rewarded answers."""
