"""Reward functions that compare answers with references, and tasks of reasoning-gym. Importing it imports no torch."""
