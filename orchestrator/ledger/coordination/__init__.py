"""What processes agree on through the ledger and what is no history: runners, queue, schedules."""
