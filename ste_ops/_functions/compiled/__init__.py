"""What a compiler sees of the operators: their arithmetic in torch's own (docs/decisions/compiled.md)."""
