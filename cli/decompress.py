"""`gbnn-compress decompress`: dense weights back."""

from typing import Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.output import words


def command(
    artifact: options.Artifact,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE.safetensors", help="The file to write.", show_default=False),
    ],
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
    """Write an artifact's weights as safetensors.

    Names, dtypes, integer buffers and ties are those of the checkpoint.
    """
    with console.progress(quiet=quiet) as tell:
        tell(f"rebuilding the weights of {words.name_of(artifact)}")
        import gbnn_compress

        size_bytes = gbnn_compress.decompress(artifact, output, seed=sample)
    which = "the posterior mean" if sample is None else f"one posterior sample (seed {sample})"
    console.write_stdout(f"wrote {words.printable(output)}: {which}, {words.size(size_bytes)}\n")
    return 0
