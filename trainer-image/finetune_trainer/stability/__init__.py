"""The stability guard: findings from logged metrics, and going back to an earlier checkpoint."""
