"""What was decided, looked at afterwards: asked again of other policies, explained, exported."""
