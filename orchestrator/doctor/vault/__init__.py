"""What is wrong at Vault: the server, who we are there and may, what is installed, and whether it issues."""
