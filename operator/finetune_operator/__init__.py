"""The operator: turns FineTuneJobs into pods, and pods into a model."""
