"""Turns the rows that users have into the token rows that training reads."""
