"""What makes the documentation: the reference, from the code, and the site, from `docs/`. No part of the package."""
