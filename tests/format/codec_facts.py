"""What a manifest must say besides its tensors."""

FACTS = {
    "checkpoint": {
        "sha256": "0123456789abcdef" * 4,
        "bytes": 4000,
        "parameters": 600,
        "architecture": None,
        "notes": [],
    },
    "damage": {"drop": 1.5, "agreement": 0.97, "logit_kl": 0.01, "measured": False, "safe_ratio": 2.0},
    **{name: {} for name in ("recipe", "versions")},
    "seed": 0,
    "components_before_merging": 1,
    "target_ratio": None,
    "max_drop": 1.0,
    "ratio_of": "artifact",
    "warnings": [],
    "noise": 0.5,
}
