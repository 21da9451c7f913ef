"""Every family of networks there and back: random weights, compressed, decompressed, loaded strictly, outputs compared.

usage: python benchmarks/families.py [NAME ...] [--ratio 4] [--bound 0.15] [--feedback] [--decoder FILE] [--cache FILE]

Each of some ninety small torchvision and timm networks, and of some twenty of other fields, is compressed data-free
without naming it, read back (ids exact, checksums right: `compress` verifies both before it is done), decompressed, and
loaded into a new network with strict names and shapes. Both networks then run on the same random inputs, and

    relative error = sqrt(sum (y' - y)^2 / sum (y - mean y)^2)

is compared with the bound, where the mean is over the inputs at each place of the output.

Weights are those that the library draws. What it leaves at one number (norms, biases, layer scales of 1e-6, residual
branches that start at zero) is drawn as well, so that every tensor matters; batch norms take their statistics from one
pass over other inputs in training mode. Without `--feedback` weights are rounded one by one, which is quick and does
more harm. With `--decoder decoder/build/gbnn-decode`, that tool must write the same bits as `decompress`. Prints one
line a network; exit code 1 names those that did not come back, or came back beyond the bound.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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

OTHER = "other/"
"""Begins the names of networks from other_networks.py."""

SIZES = (64, 96, 128, 224, 240, 256)
"""Sides of the images; the first that the network runs on."""

N_INPUTS = 16
"""To compare outputs on, and as many others for the statistics of batch norms."""

SPREAD, DEVIATION = 0.25, 0.05
"""Standard deviation of scales, which are drawn around 1, and of other constants, which are drawn around 0."""

SHOWN = 10
"""Networks with the largest errors, named at the end."""


def main() -> int:
    arguments = parsed()
    known = json.loads(arguments.cache.read_text()) if arguments.cache and arguments.cache.exists() else {}
    options = (
        f" {arguments.ratio:g}x" + " with feedback" * arguments.feedback + " with decoder" * bool(arguments.decoder)
    )
    results = {}
    print("| network | weights | ratio | relative error | time |\n| --- | --- | --- | --- | --- |")
    for name in arguments.names or names():
        results[name] = known.get(name + options) or attempt(name, arguments)
        print(row(name, results[name], bound=arguments.bound), flush=True)
        if arguments.cache:
            known[name + options] = results[name]
            arguments.cache.write_text(json.dumps(known, indent=1))
    failed = [name for name, result in results.items() if "error" in result]
    print(f"{len(results) - len(failed)} of {len(results)} networks came back; failed: {', '.join(failed) or 'none'}")
    beyond = summarise(
        {name: each["relative_error"] for name, each in results.items() if "error" not in each}, arguments
    )
    return 1 if failed or beyond else 0


def summarise(errors: dict[str, float], arguments: argparse.Namespace) -> list[str]:
    """Print the spread of the errors and the largest; return the networks beyond the bound."""
    if not errors:
        return []
    ordered = sorted(errors, key=errors.__getitem__, reverse=True)
    median, most = errors[ordered[len(ordered) // 2]], errors[ordered[len(ordered) // 10]]
    print(f"relative error: median {median:.4f}, a tenth of the networks above {most:.4f}; the largest:")
    print(", ".join(f"{name} {errors[name]:.4f}" for name in ordered[:SHOWN]))
    beyond = [name for name in ordered if not errors[name] <= arguments.bound]
    print(f"above {arguments.bound:g}: {', '.join(beyond) or 'none'}")
    return beyond


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ratio", type=float, default=4)
    parser.add_argument("--bound", type=float, default=0.15)
    parser.add_argument("--feedback", action="store_true")
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--cache", type=Path)
    return parser.parse_args()


def names() -> list[str]:
    from other_networks import OTHERS

    images = [f"torchvision/{name}" for name in TORCHVISION.split()] + [f"timm/{name}" for name in TIMM.split()]
    return images + [OTHER + name for name in OTHERS]


def attempt(name: str, arguments: argparse.Namespace) -> dict:
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = there_and_back(name, arguments, Path(folder))
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {**result, "seconds": time.perf_counter() - start}


def there_and_back(name: str, arguments: argparse.Namespace, folder: Path) -> dict:
    """Compress, decompress and load a network with random weights; compare the outputs of both."""
    import torch
    from safetensors.torch import load_file

    import gbnn_compress
    from gbnn_compress.data.architectures import load_weights

    torch.manual_seed(0)
    make, some = case(name)
    network = make()
    inputs = drawn(network, some)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    checkpoint, artifact, dense = (folder / part for part in ("net.pth", "net.gbnn.safetensors", "dense.safetensors"))
    torch.save(network.state_dict(), checkpoint)
    settings = {"feedback": arguments.feedback}
    report = gbnn_compress.compress(checkpoint, target_ratio=arguments.ratio, output=artifact, settings=settings)
    gbnn_compress.decompress(artifact, dense)
    after = load_file(dense)
    if arguments.decoder:
        subprocess.run([arguments.decoder.resolve(), artifact, folder / "decoded.safetensors"], check=True)
        decoded = load_file(folder / "decoded.safetensors")
        assert decoded.keys() == after.keys(), "the decoder writes other tensors"
        other_bits = [key for key, value in decoded.items() if not same(value, after[key])]
        assert not other_bits, f"the decoder gives other bits: {other_bits[:3]}"
    expected = {key: (tensor.dtype, tensor.shape) for key, tensor in before.items()}
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in after.items()} == expected, "other tensors came back"
    whole = [key for key, tensor in before.items() if not tensor.is_floating_point()]
    assert all(torch.equal(before[key], after[key]) for key in whole), "integers changed"
    other = make()
    load_weights(other, after, spec=name)
    return {
        "weights": report["checkpoint"]["parameters"],
        "ratio": report["ratio"],
        "met": report["target_met"],
        "relative_error": relative_error(outputs(network, inputs), outputs(other, inputs)),
    }


def same(a: "torch.Tensor", b: "torch.Tensor") -> bool:
    """Whether dtypes, shapes and all bits are the same."""
    import torch

    bits = (each.reshape(-1).view(torch.uint8) for each in (a, b))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*bits)


def case(name: str) -> tuple[Callable[[], Any], Callable[[int], Iterator[Any]]]:
    """What makes a network in evaluation mode, and that many inputs in each of the forms that it may take."""
    if name.startswith(OTHER):
        from other_networks import OTHERS

        make, some = OTHERS[name.removeprefix(OTHER)]
        return lambda: make().eval(), lambda n: iter([some(n)])
    from gbnn_compress.data.architectures import build_network

    return lambda: build_network(name), lambda n: (images(n, size) for size in SIZES)


def images(n: int, size: int) -> "torch.Tensor":
    """float32 (n, 3, size, size): noise of several scales, each image with its own share of each."""
    import torch

    scales = [torch.randn(n, 3, side, side) for side in (2, 4, 8, 16, size)]
    grown = (torch.nn.functional.interpolate(each, size=size, mode="bilinear") for each in scales)
    return sum(torch.rand(n, 3, 1, 1) * each for each in grown)


def drawn(network: "torch.nn.Module", some: Callable[[int], Iterator[Any]]) -> Any:
    """Draw what the library leaves constant, set the statistics of batch norms, and return inputs that fit."""
    import torch

    draw_constants(network)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for inputs in some(2 * N_INPUTS):
        try:
            with torch.no_grad():
                settle(network, norms, inputs[N_INPUTS:])
            result = outputs(network, inputs[:N_INPUTS])
        except Exception:  # it does not take this size
            network.load_state_dict(start)
            continue
        assert result.isfinite().all(), "outputs are not finite before compressing"
        return inputs[:N_INPUTS]
    raise AssertionError("the network runs on none of its inputs")


def draw_constants(network: "torch.nn.Module") -> None:
    """Numbers in place of one constant: around 1 for what scales, around 0 for biases, positions and tables."""
    import torch

    for name, parameter in network.named_parameters():
        values = parameter.detach().flatten()
        if len(values) < 2 or not values.is_floating_point() or bool((values != values[0]).any()):
            continue
        scales = float(values[0]) != 0 or (parameter.dim() == 1 and name.endswith("weight"))
        noise = torch.randn_like(values)
        values.copy_(1 + SPREAD * noise if scales else DEVIATION * noise)


def settle(network: "torch.nn.Module", norms: list, inputs: Any) -> None:
    """Statistics of batch norms from one pass, everything else in evaluation mode."""
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    try:
        network(inputs)
    finally:
        network.eval()


def outputs(network: "torch.nn.Module", inputs: Any) -> "torch.Tensor":
    """float64 (inputs, places)."""
    import torch

    with torch.inference_mode():
        return network(inputs).double().flatten(1)


def relative_error(before: "torch.Tensor", after: "torch.Tensor") -> float:
    return float(((after - before).square().sum() / (before - before.mean(dim=0)).square().sum()).sqrt())


def row(name: str, result: dict, *, bound: float) -> str:
    if "error" in result:
        return f"| {name} | failed: {result['error']} |"
    met = "" if result["met"] else " (missed)"
    error = result["relative_error"]
    size, ratio = f"{result['weights'] / 1e6:.1f} M", f"{result['ratio']:.2f}x{met}"
    mark = "" if error <= bound else " (above)"
    return f"| {name} | {size} | {ratio} | {error:.4f}{mark} | {result['seconds']:.1f} s |"


if __name__ == "__main__":
    sys.exit(main())
