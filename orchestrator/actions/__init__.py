"""What a step can do: the contract of an action, the catalogue, what may leave a step."""
