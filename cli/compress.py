"""`gbnn-compress compress`: checkpoint in, artifact out."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from gbnn_compress_cli import console, options

from gbnn_compress import parallel
from gbnn_compress.report import words


def command(
    checkpoint: options.Checkpoint,
    target_ratio: options.TargetRatio = None,
    max_drop: options.MaxDrop = None,
    max_error: options.MaxError = None,
    ratio_of: options.RatioOf = "artifact",
    file: options.ArtifactFile = None,
    arch: options.Architecture = None,
    task: options.Task = None,
    key: options.Key = None,
    data: options.Data = None,
    val_data: options.ValData = None,
    epochs: options.Epochs = None,
    members: options.Members = 1,
    eval_data: options.EvalData = None,
    forward: options.Forward = None,
    output: options.Output = None,
    metric: options.Metric = None,
    loss: options.Loss = None,
    inputs: options.Inputs = None,
    keep: options.Keep = None,
    recipe: options.RecipeName = "default",
    settings: options.Settings = None,
    json: options.Json = None,
    html: options.Html = None,
    seed: options.Seed = 0,
    restart: options.Restart = False,
    samples: options.Samples = 16,
    device: options.Device = "auto",
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Compress a checkpoint into one small file.

    Give `--target-ratio`, `--max-drop` or `--max-error`. Prints the bytes of each part and the damage.
    Exit code 1: the file is written but misses the target.
    """
    follows = parallel.rank() > 0
    reading = partial(
        options.parse_evaluation, samples=samples, mean=mean, std=std, image_size=image_size, device=device
    )
    ratio, chosen = options.parse_ratio(target_ratio), options.parse_settings(settings)
    with ExitStack() as stack:
        tell = stack.enter_context(console.progress(quiet=quiet or follows))
        from gbnn_compress.pipeline.compress import run
        from gbnn_compress.pipeline.request import Request, default_output
        from gbnn_compress.training import processes

        stack.enter_context(processes.joined())
        file, chosen_output = options.artifact_and_output(file, output)
        if follows:  # Only the first process reports; the output of the others is discarded.
            file = str(Path(stack.enter_context(TemporaryDirectory()), "artifact"))
            json = html = eval_data = None
        source = Path(checkpoint)
        artifact = Path(file) if file else default_output(source)
        reads = (data, val_data, eval_data, arch, recipe, forward, metric, loss)
        console.check_json_target(json, reads=reads, the_checkpoint=source, the_artifact=artifact, the_page=html)
        request = Request(
            checkpoint=source,
            target_ratio=ratio,
            max_drop=max_drop,
            max_error=max_error,
            ratio_of=ratio_of,
            output=chosen_output,
            file=artifact,
            arch=arch,
            key=key,
            task=task,
            recipe=recipe,
            settings=chosen,
            data=reading(data),
            val_data=reading(val_data),
            epochs=epochs,
            members=members,
            eval_data=reading(eval_data),
            forward=forward,
            metric=metric,
            loss=loss,
            inputs=tuple(inputs or ()),
            keep=tuple(keep or ()),
            html=html,
            seed=seed,
            restart=restart,
        )
        report = run(request, progress=tell)
    if follows:
        return 0
    any_data, trained = bool(data or val_data or eval_data), "members" in report or "training" in report
    idle = options.idle(any_data=any_data, trained=trained, mean=mean, std=std, image_size=image_size, restart=restart)
    console.warn(idle, in_table=False)
    in_table = console.write_json(report, json)
    console.warn(report["warnings"], in_table=in_table)
    if in_table:
        from gbnn_compress_cli.report_view import file_view

        view = file_view(report, name=words.name_of(source), arch=arch, every_layer=verbose)
        console.write_stdout(console.render(*view))
    return 0 if report["target_met"] else 1
