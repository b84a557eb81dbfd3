"""What watches the training loop, one concern per module."""
