# The configuration of a single OpenBao server, as docker-compose.yml runs it. Review before use:
# - TLS is off because only the containers of one private network reach this listener. Anywhere else
#   replace `tls_disable` by `tls_cert_file` and `tls_key_file`.
# - The static seal opens by itself with a key of 32 random bytes that whoever holds the machine holds
#   too. With a KMS or an HSM use its seal instead.

api_addr     = "http://openbao:8200"
cluster_addr = "http://openbao:8201"

storage "raft" {
  path    = "/openbao/file"
  node_id = "node1"
  # A single node need not wait for the votes of others: quicker to become active after a restart.
  performance_multiplier = "1"
}

seal "static" {
  current_key_id = "1"
  current_key    = "file:///run/secrets/openbao_seal_key"
}

listener "tcp" {
  address         = "0.0.0.0:8200"
  cluster_address = "0.0.0.0:8201"
  tls_disable     = "true"
}

# OpenBao takes audit devices from its configuration only. Every request and answer, secrets hashed.
audit "file" "file" {
  options {
    file_path = "/openbao/logs/audit.log"
  }
}
