"""`gbnn-compress decompress`: dense weights back."""

from typing import Annotated

import typer

from gbnn_compress.report import words
from gbnn_compress_cli import console, options


def command(
    artifact: options.Artifact,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE.safetensors", help="The file to write.", show_default=False),
    ],
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="CHECKPOINT",
            help="The checkpoint it was made of: written is the same layout (wrapper, other entries, names) with these"
            " weights, so that its own loader reads the result; -o may then end as it does.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="SEED",
            parser=options.whole_number,
            help="One posterior sample instead of the posterior mean.",
        ),
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Write an artifact's weights as safetensors, or as its checkpoint was laid out.

    Names, dtypes, integer buffers and ties are those of the checkpoint.
    """
    with console.progress(quiet=quiet) as tell:
        tell(f"rebuilding the weights of {words.name_of(artifact)}")
        import gbnn_compress

        size_bytes = gbnn_compress.decompress(artifact, output, seed=sample, like=like)
    which = "the posterior mean" if sample is None else f"one posterior sample (seed {sample})"
    console.write_stdout(f"wrote {words.printable(output)}: {which}, {words.size(size_bytes)}\n")
    return 0
