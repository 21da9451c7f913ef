"""What a manifest must say besides its tensors."""

FACTS = {
    "checkpoint": {"sha256": "0123456789abcdef" * 4},
    **{name: {} for name in ("recipe", "versions", "damage")},
    "seed": 0,
    "components_before_merging": 1,
    "target_ratio": None,
    "max_drop": 1.0,
    "ratio_of": "artifact",
    "warnings": [],
    "noise": 0.5,
}
