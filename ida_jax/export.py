"""ida-jax export --model=FILE|DIR --output=X.onnx|X.stablehlo [--ssr=FILE] [--norm] …

Writes a face model as one graph: crops in, embeddings out; with --ssr also IDA-L's log-density,
with --norm also the raw embeddings' norms, for IDA-Q. The graph takes any batch size, contains the
weights, and computes in float32.

  X.onnx         for onnxruntime, TensorRT, OpenVINO, …
  X.stablehlo    jax.export, for CPU, GPU and TPU; X.stablehlo.json says what is in it
  X.safetensors  not a graph but a face model for ida_jax, from other software's weights

FILE is a model.safetensors, DIR a workdir that holds one. FILE may also be other software's
weights: arcface_torch's iresnet, mbf and ViT or InsightFace_Pytorch's IR-SE as .pth, .pt, .ckpt,
.npz or .onnx, and MobileFaceNet's state dict.

Input uint8 (default) is RGB crops [B, H, W, 3] as read from a file, normalised inside the graph;
float_nchw is float32 [B, 3, H, W], RGB and already normalised, as InsightFace's networks take.

Embeddings have unit length (--output_kind=unit, default), or are raw, as the network gives them,
which a drop-in for InsightFace's files needs: its IJB protocol weights images by their norm, and
adds mirrored images' raw embeddings.

Before the file is written, graph and model run on random images; the largest difference is printed.

examples:
  ida-jax export --model=runs/quickstart --output=face.onnx
  ida-jax export --model=backbone.pth --output=model.safetensors
  ida-jax export --model=runs/ms1m --input=float_nchw --output_kind=raw --output=drop_in.onnx
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ida_jax.common.command_line import Parser
from ida_jax.common.errors import UserError, exit_code, printable

if TYPE_CHECKING:
    from ida_jax.artefacts.face_model import FaceModel

_SUFFIXES = (".onnx", ".stablehlo", ".safetensors")
# float32 sums in another order differ by less than 1e-5; a wrong layer by far more.
_LARGEST_DIFFERENCE = 1e-3


def main(argv: list[str]) -> None:
    """Parses flags, writes the file, prints what it holds."""
    options = _parser().parse_args(argv)
    _check(options)
    if options.info:
        _export(options)
        return
    from ida_jax.common.files import file_inside
    from ida_jax.common.outputs import writing
    from ida_jax.runs.workdir import MODEL

    described = _described(options.output)
    outputs = {"--output": options.output, "--output (with its .json)": described}
    reading = {"--model": file_inside(options.model, MODEL), "--ssr": options.ssr}
    with writing(outputs, reading=reading):
        _export(options)


def _export(options: Any) -> None:
    import jax

    # A GPU's or TPU's rounding is not to enter the check; nothing here is worth one.
    jax.config.update("jax_platforms", "cpu")
    from ida_jax.interop.exported import description

    model = _read_model(options.model)
    if options.info:
        _print(description(model, input=options.input, ssr=None, output_kind=options.output_kind))
        return
    if options.output.suffix == ".safetensors":
        model.save(options.output)
        print(f"{options.output}: {model.network}, fingerprint {model.fingerprint}")
        return
    _write_graph(model, options)


def _parser() -> Parser:
    parser = Parser("export", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FILE|DIR", help="the face model")
    add("--output", type=Path, metavar="X", help="what to write; its suffix is the format")
    add("--ssr", type=Path, metavar="FILE", help="the model's SSR module: adds log_density")
    add("--norm", action="store_true", help="adds norm, that of the raw embedding (IDA-Q)")
    add("--input", default="uint8", choices=("uint8", "float_nchw"), help="uint8 (default)")
    add("--output_kind", default="unit", choices=("unit", "raw"), help="the embeddings' length: 1 "
        "(unit, default), or as the network gives them (raw)")  # fmt: skip
    add("--info", action="store_true", help="only print what the model is and takes")
    return parser


def _check(options: Any) -> None:
    if options.info:
        return
    if options.output is None:
        raise UserError("--output=X.onnx or X.stablehlo says where to write; or --info to look")
    if options.output.suffix not in _SUFFIXES:
        raise UserError(
            f"--output={options.output}: expected a name that ends in {', '.join(_SUFFIXES)}"
        )
    if not options.output.absolute().parent.is_dir():
        raise UserError(f"--output={options.output}: its folder does not exist; make it first")
    if options.output.suffix == ".safetensors":
        given = {
            "--ssr": options.ssr is not None,
            "--norm": options.norm,
            "--output_kind=raw": options.output_kind == "raw",
        }
        for flag in (flag for flag, present in given.items() if present):
            raise UserError(f"{flag} is for graphs, .onnx and .stablehlo")


def _read_model(path: Path) -> "FaceModel":
    from ida_jax.artefacts.face_model import FaceModel
    from ida_jax.common.files import file_inside
    from ida_jax.interop.weights import import_model
    from ida_jax.runs.workdir import MODEL

    path = file_inside(path, MODEL)
    return FaceModel.load(path) if path.suffix == ".safetensors" else import_model(path)


def _described(output: Path) -> Path | None:
    """Where the description of a graph goes that cannot hold its own."""
    return Path(f"{output}.json") if output.suffix == ".stablehlo" else None


def _write_graph(model: "FaceModel", options: Any) -> None:
    from ida_jax.artefacts.ssr_module import SSRModule
    from ida_jax.common.files import written_together
    from ida_jax.interop.exported import description, largest_difference

    if options.output.suffix == ".onnx":
        from ida_jax.interop.onnx_export import onnx_bytes as to_bytes
        from ida_jax.interop.onnx_export import onnx_graph as to_graph
    else:
        from ida_jax.interop.stablehlo_export import stablehlo_bytes as to_bytes
        from ida_jax.interop.stablehlo_export import stablehlo_graph as to_graph

    ssr = None if options.ssr is None else SSRModule.load(options.ssr)
    given = {"input": options.input, "ssr": ssr, "norm": options.norm}
    given["output_kind"] = options.output_kind
    facts = description(model, **given)
    data = to_bytes(model, **given)
    difference = largest_difference(to_graph(data), model, **given)
    if not difference <= _LARGEST_DIFFERENCE:
        raise RuntimeError(f"the graph differs from JAX by {difference:.1e}; nothing was written")
    described = _described(options.output)
    with written_together(options.output, *filter(None, [described])) as (graph, *others):
        graph.write_bytes(data)
        for other in others:
            other.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _print(facts)
    print(
        f"{options.output}: {len(data) / 2**20:.1f} MiB, differs from JAX by at most "
        f"{difference:.1e} on random images"
    )


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name:>14}  {printable(str(value))}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
