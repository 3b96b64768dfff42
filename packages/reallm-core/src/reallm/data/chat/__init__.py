"""Conversations as text: chat templates, the turns of the assistant, and transcripts for people to read."""
