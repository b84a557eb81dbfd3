"""Fetches what the spec's source URIs name into the workspace, whole or not at all."""
