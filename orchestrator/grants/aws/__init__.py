"""What an `aws` grant opens: actions and resources as they may be declared, and the session policy of them. Pure."""
