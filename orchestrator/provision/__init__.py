"""The admin's act: the desired state of Vault and databases, compared, installed and checked."""
