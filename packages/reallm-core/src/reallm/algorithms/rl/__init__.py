"""What algorithms of reinforcement learning share: rollouts, advantages, and the loss of a policy."""
