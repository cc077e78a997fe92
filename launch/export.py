"""Exports a trained model that predicts without this package.

python -m launch.export --workdir=runs/movie_reviews --output=exported

The folder contains the prediction programs as StableHLO (jax.export) for cpu, cuda and tpu, one for
each padded length, with any batch size; the parameters; pre- and postprocessing as data; golden
inputs and outputs; a model card; and predict.py, which predicts with these files:

pip install -r exported/requirements.txt
python exported/predict.py --input="a gripping, funny film"
python -m launch.predict --export=exported --input="a gripping, funny film"

--input gives the golden inputs, whose outputs are stored. Without --input, the golden inputs are
random arrays.

--format=onnx converts the programs to ONNX for onnxruntime (pip install -r requirements-onnx.txt),
and compares their outputs with those of JAX. docs/DEPLOYING.md lists what can be converted.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import cli

cli.define_workdir()
flags.DEFINE_string("output", None, "Directory to write; it must not exist, or be empty.")
flags.DEFINE_bool(
    "with_attention", False, "Also export the program that computes the attention weights."
)
flags.DEFINE_multi_string(
    "input", [], "Input whose output is stored to verify the export; repeatable."
)
flags.DEFINE_multi_string(
    "set", [], "Override key=value of an option of config.model.decoding, in this export only."
)
flags.DEFINE_enum("format", "stablehlo", ["stablehlo", "onnx"], "Format of the programs.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "Batch size of ONNX programs that cannot be converted for all batch sizes; 1 by default.",
)


def export() -> None:
    """Runs the command `launch.export`."""
    from launch.engine import prediction_options
    from launch.engine.new_folder import check_new
    from launch.exports import card, writer
    from launch.exports.reader import InputError
    from launch.runs import directory
    from tasks.common.errors import UserError

    folder, target = cli.workdir(), Path(cli.required("output")).expanduser()
    batch_size = cli.FLAGS.batch_size
    if batch_size is not None and cli.FLAGS.format != "onnx":
        raise UserError("--batch_size: needs --format=onnx; StableHLO programs take any size")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: expected at least 1")
    config = prediction_options.with_options(directory.saved_config(folder), cli.FLAGS.set)
    check_new("output", target)
    cli.set_up_jax(config)
    task = directory.restored_task(config, folder)
    _, variables, step = directory.load_variables(task, config, folder)
    try:
        signature = writer.write_export(
            task,
            config,
            variables,
            target,
            with_attention=cli.FLAGS.with_attention,
            examples=cli.FLAGS.input,
            card=lambda signature: card.render(signature, config, folder, step),
            format=cli.FLAGS.format,
            batch_size=batch_size or 1,
        )
    except InputError as error:
        raise UserError(f"--input: {error}") from None
    programs = sum(map(len, signature["programs"].values()))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"directory: {target} ({programs} programs, {size / 1e6:.1f} MB)")
    if (onnx := signature.get("onnx")) is not None:
        print(f"largest difference from JAX: {onnx['deviation']:.2g}")
        for kind, reason in onnx["not_converted"].items():
            print(f"not converted: {kind}: {reason}")
    print(f"  python {target / 'predict.py'} --input=...")


if __name__ == "__main__":
    cli.main(export, __doc__)
