"""Every family of networks there and back: random weights, compressed, decompressed, loaded strictly.

usage: python benchmarks/families.py [NAME ...] [--ratio 8] [--cache FILE]

Each of some ninety small torchvision and timm networks is compressed data-free without naming it, read back (ids exact,
checksums right: `compress` verifies both before it is done), decompressed, and loaded into a new network with strict
names and shapes. Prints one line a network, then how many came back; exit code 1 names those that did not.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

TORCHVISION = """
    densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf
    regnet_y_400mf resnet18 shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1
"""

TIMM = """
    bat_resnext26ts coat_tiny convit_tiny convnext_atto convnextv2_atto crossvit_tiny_240
    deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla46_c dla46x_c dpn48b eca_resnext26ts
    edgenext_xx_small efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw
    eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 fasternet_t0 gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100
    gmlp_ti16_224 hardcorenas_a hgnetv2_b0 inception_next_atto lambda_resnet26t lcnet_050 legacy_seresnet18
    levit_128s mambaout_femto maxvit_rmlp_pico_rw_256 mixnet_s mnasnet_small mobilenetv2_050 mobilenetv3_large_100
    mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 pit_ti_224
    poolformer_s12 pvt_v2_b0 regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 resnet10t resnet14t
    resnet18 resnetblur18 resnext26ts rexnet_100 semnasnet_075 seresnext26ts shvit_s1 skresnet18 spnasnet_100
    starnet_s1 swiftformer_xs test_byobnet test_efficientnet test_mambaout test_resnet test_vit tf_efficientnetv2_b0
    tiny_vit_5m_224 tinynet_e visformer_tiny vit_tiny_patch16_224 xcit_nano_12_p16_224
"""


def main() -> int:
    arguments = parsed()
    known = json.loads(arguments.cache.read_text()) if arguments.cache and arguments.cache.exists() else {}
    results = {}
    for name in arguments.names or names():
        results[name] = known.get(name) or attempt(name, arguments.ratio)
        print(row(name, results[name]), flush=True)
        if arguments.cache:
            arguments.cache.write_text(json.dumps({**known, **results}, indent=1))
    failed = [name for name, result in results.items() if "error" in result]
    print(f"{len(results) - len(failed)} of {len(results)} networks came back; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--cache", type=Path)
    return parser.parse_args()


def names() -> list[str]:
    return [f"torchvision/{name}" for name in TORCHVISION.split()] + [f"timm/{name}" for name in TIMM.split()]


def attempt(name: str, ratio: float) -> dict:
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = there_and_back(name, ratio, Path(folder))
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {**result, "seconds": time.perf_counter() - start}


def there_and_back(name: str, ratio: float, folder: Path) -> dict:
    """Compress, decompress and load a network with random weights."""
    import torch
    from safetensors.torch import load_file

    import gbnn_compress
    from gbnn_compress.tasks import build_network, load_weights

    torch.manual_seed(0)
    network = build_network(name)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    checkpoint, artifact, dense = (folder / part for part in ("net.pth", "net.gbnn.safetensors", "dense.safetensors"))
    torch.save(before, checkpoint)
    settings = {"feedback": False}  # of no meaning here, and most of the time
    report = gbnn_compress.compress(checkpoint, target_ratio=ratio, output=artifact, settings=settings)
    gbnn_compress.decompress(artifact, dense)
    after = load_file(dense)
    expected = {key: (tensor.dtype, tensor.shape) for key, tensor in before.items()}
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in after.items()} == expected, "other tensors came back"
    whole = [key for key, tensor in before.items() if not tensor.is_floating_point()]
    assert all(torch.equal(before[key], after[key]) for key in whole), "integers changed"
    load_weights(build_network(name), after, spec=name)
    return {"weights": report["checkpoint"]["parameters"], "ratio": report["ratio"], "met": report["target_met"]}


def row(name: str, result: dict) -> str:
    if "error" in result:
        return f"| {name} | failed: {result['error']} |"
    met = "" if result["met"] else " (missed)"
    return f"| {name} | {result['weights'] / 1e6:.1f} M | {result['ratio']:.2f}x{met} | {result['seconds']:.1f} s |"


if __name__ == "__main__":
    sys.exit(main())
