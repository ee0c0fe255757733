"""People agreeing to what a step may have: who they are, what they said, and whether that is enough."""
