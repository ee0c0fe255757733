"""The process that stays: schedules, workers, health and metrics."""
