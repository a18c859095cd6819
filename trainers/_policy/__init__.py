"""Policy methods: rollouts, rewards, guards, and the adapter over TRL."""
