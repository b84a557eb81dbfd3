"""The program in prepare and trainer pods: fetches and checks, trains, and hands over a model.

Importing the package costs nothing; torch and its friends load when a command starts its work.
"""
