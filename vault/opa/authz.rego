# Who may ask the OPA of docker-compose.yml, and what: the holder of one token, the two documents that decide. OPA asks
# this policy before each request (--authentication=token --authorization=basic; OPA documentation, Security). It knows
# the token's SHA-256 only, of a file beside it: {"opa_token_sha256": "..."}.
package system.authz

import rego.v1

default allow := false

allow if {
	input.method == "GET"
	input.path == ["health"]
}

allow if {
	input.method == "POST"
	input.path in {["v1", "data", "orchestrator", "decision"], ["v1", "data", "orchestrator", "admit"]}
	crypto.sha256(input.identity) == data.opa_token_sha256
}
