"""Bits: from checkpoint and lambda to components, index maps and coded vectors."""
