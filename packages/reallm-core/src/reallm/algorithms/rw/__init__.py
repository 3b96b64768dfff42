"""Reward modelling: a model that scores answers, trained on preferences."""
