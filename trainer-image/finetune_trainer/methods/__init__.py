"""The fine-tuning methods, each thin over its TRL trainer."""
