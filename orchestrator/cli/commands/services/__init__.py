"""Processes that stay, and what they are told: the scheduler, its schedules, the queue and its workers."""
