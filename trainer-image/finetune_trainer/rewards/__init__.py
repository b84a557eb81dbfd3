"""What a completion is worth: built-in rewards, the user's functions and reward models."""
