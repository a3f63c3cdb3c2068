"""Models: what goes in (packed, padded, nested) comes out."""
