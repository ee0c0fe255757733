"""Who calls: agents, and the issuers of their tokens, as an admin declares them."""
