"""Who looks at the pages, proven by Vault or by an OpenID provider, and what they may do there."""
