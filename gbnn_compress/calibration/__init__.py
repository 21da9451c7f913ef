"""Networks run on inputs, real or synthetic: what errors of each layer cost, and how to compensate for them."""
