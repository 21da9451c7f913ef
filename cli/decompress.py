"""`gbnn-compress decompress`: an artifact's dense weights."""

from typing import Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.report import words


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
            help="The original checkpoint. The output has its layout (wrapper, other entries, names) with the"
            " artifact's weights, so that the checkpoint's own loader reads it. -o may then have its suffix.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="SEED",
            parser=options.whole_number,
            help="Write one posterior sample instead of the posterior mean.",
        ),
    ] = None,
    member: Annotated[
        int | None,
        typer.Option(
            "--member", metavar="N", parser=options.whole_number, help="Of an ensemble: the network to take, from 0."
        ),
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Write an artifact's weights as safetensors, or in the layout of its checkpoint.

    Names, dtypes, integer buffers and ties are those of the checkpoint.
    """
    with console.progress(quiet=quiet) as tell:
        tell(f"rebuilding the weights of {words.name_of(artifact)}")
        import gbnn_compress

        size_bytes = gbnn_compress.decompress(artifact, output, seed=sample, like=like, member=member)
    of_member = "" if member is None else f" of member {member}"
    which = "the posterior mean" if sample is None else f"one posterior sample (seed {sample})"
    console.write_stdout(f"wrote {words.printable(output)}: {which}{of_member}, {words.size(size_bytes)}\n")
    return 0
