"""Execution plans: where each call is computed, what that costs, and the search for the cheapest."""
