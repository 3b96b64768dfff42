"""PPO for reallm whose reward model prefers short answers."""
