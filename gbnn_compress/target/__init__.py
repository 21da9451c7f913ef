"""One target: how layers share the bits, the cut whose file meets it, and that file, checked and written."""
