# The runtime may mint child tokens bound to provisioned policies, and take back what it issued. It can neither read a
# credential itself nor change what a step may get.

# Child tokens, each through the token role of its step or duty, which fixes its one policy and its longest life. What
# else could be asked for at this path (policies, no_parent, type, period, num_uses) is refused with the request.
path "auth/token/create/step.*" {
  capabilities = ["update"]
  allowed_parameters = { "ttl" = [], "display_name" = [], "meta" = [] }
}
path "auth/token/create/sweep.*" {
  capabilities = ["update"]
  allowed_parameters = { "ttl" = [], "display_name" = [], "meta" = [] }
}
path "auth/token/create/bind.*" {
  capabilities = ["update"]
  allowed_parameters = { "ttl" = [], "display_name" = [], "meta" = [] }
}

# Taking back: a step's token by its accessor, a lease by its id.
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }

# Keeping a lease alive for a step that takes longer than its TTL; the role's maximum TTL stays the limit.
path "sys/leases/renew" { capabilities = ["update"] }

# What Vault has given up revoking: ids of leases and the beginnings of errors, no secret. Vault asks for sudo on this
# path, which has nothing else at it; forgetting such leases (sys/leases/revoke-force) stays with an admin.
path "sys/leases" { capabilities = ["read", "sudo"] }

# Its own token: how long it lives, longer, and gone at the end.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }

# What a token may, asked by `orchestrator doctor`: of its own, and of those that it makes. It says yes or no, no secret.
path "sys/capabilities-self" { capabilities = ["update"] }
path "sys/capabilities-accessor" { capabilities = ["update"] }

# The version of the key that signs access tokens; its private part never leaves Vault.
path "transit/keys/orchestrator-token" { capabilities = ["read"] }

# What people say to a request for approval is signed when it is said and looked at again before credentials are opened:
# who can write into the ledger alone approves nothing.
path "transit/sign/orchestrator-approvals" { capabilities = ["update"] }
path "transit/verify/orchestrator-approvals" { capabilities = ["update"] }
path "transit/verify/orchestrator-slack/sha2-256" { capabilities = ["update"] }

# The log over the histories of all runs is signed; with the public key of this anybody verifies it, without Vault.
path "transit/sign/orchestrator-history" { capabilities = ["update"] }
path "transit/keys/orchestrator-history" { capabilities = ["read"] }
