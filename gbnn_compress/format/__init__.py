"""The artifact file (docs/format.md): sections, codes, checks."""
