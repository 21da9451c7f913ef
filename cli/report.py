"""`gbnn-compress report`: where every byte of an artifact went."""

from pathlib import Path

from gbnn_compress_cli import console, options


def command(
    artifact: options.Artifact,
    json: options.Json = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Show where every byte of an artifact went."""
    console.check_json_target(json, the_artifact=artifact)
    with console.progress(quiet=quiet) as tell:
        tell(f"reading {Path(artifact).name}")
        import gbnn_compress

        report = gbnn_compress.load(artifact).report()
    in_table = console.write_json(report, json)
    console.warn(report["warnings"], in_table=in_table)
    if in_table:
        from gbnn_compress_cli.report_view import report_view

        view = report_view(report, name=Path(artifact).name, every_layer=verbose)
        console.write_stdout(console.render(*view))
    return 0
