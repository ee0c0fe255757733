"""What must hold of tools, and how what an agent chooses gets into them."""
