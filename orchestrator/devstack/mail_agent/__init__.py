"""The servers of the sample `mail_agent`, and an agent that works in it without a model."""
