"""Runs on a terminal: lists of them, and one that goes on."""
