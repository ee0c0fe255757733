"""What an admin does in an AWS account: end the sessions of a role."""
