"""What is run from a checkout by hand; no part of the package."""
