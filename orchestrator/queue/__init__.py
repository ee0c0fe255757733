"""Runs on more than one machine: DBOS holds them, hands them out, and puts back what a dead worker had."""
