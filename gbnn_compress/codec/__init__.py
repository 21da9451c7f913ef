"""Integers, sections and files."""
