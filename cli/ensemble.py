"""`gbnn-compress ensemble`: several artifacts in one file."""

from typing import Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.report import words


def command(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT...", help="The files to join; an ensemble gives its members.", show_default=False
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The file to write.", show_default=False)
    ],
    json: options.Json = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Join several artifacts into one file, whose predictions are averaged.

    Architectures and ratios may differ; the networks must return outputs of one kind and shape. Each keeps its
    temperature. The file has about the size of its parts, or less where members have one architecture.
    """
    console.check_json_target(json, reads=artifacts, the_file_to_write=output)
    name = words.name_of(output)
    with console.progress(quiet=quiet) as tell:
        tell(f"joining {words.counted(len(artifacts), 'file')} into {name}")
        import gbnn_compress

        report = gbnn_compress.ensemble(artifacts, output)
    in_table = console.write_json(report, json)
    console.warn(report["warnings"], in_table=in_table)
    if in_table:
        from gbnn_compress_cli.report_view import file_view

        console.write_stdout(console.render(*file_view(report, name=name, every_layer=verbose)))
    return 0
