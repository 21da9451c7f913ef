"""`gbnn-compress report`: the bytes of each part of an artifact."""

from pathlib import Path

from gbnn_compress_cli import console, options

from gbnn_compress.report import words


def command(
    artifact: options.Artifact,
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Show the bytes of each part of an artifact, and its predicted or measured damage."""
    console.check_json_target(json, the_artifact=artifact, the_page=html)
    name = words.name_of(artifact)
    with console.progress(quiet=quiet) as tell:
        tell(f"reading {name}")
        from gbnn_compress.format.ensembles import read_ensemble
        from gbnn_compress.report import page, templated
        from gbnn_compress.report.sizes import report_of

        if html is not None:
            templated.require_writable(Path(html), artifact=Path(artifact))
        found = read_ensemble(Path(artifact))
        report = report_of(found)
        if html is not None:
            tell(f"writing {words.name_of(html)}")
            page.write(page.page_of(found, name=name), Path(html))
    in_table = console.write_json(report, json)
    console.warn(report["warnings"], in_table=in_table)
    if in_table:
        from gbnn_compress_cli.report_view import file_view

        view = file_view(report, name=name, every_layer=verbose)
        console.write_stdout(console.render(*view))
    return 0
