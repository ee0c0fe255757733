"""One signed JWT of a trusted issuer, verified strictly: of ours, of an identity provider, of Vault or Kubernetes."""
