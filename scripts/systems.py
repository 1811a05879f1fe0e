"""The systems that `benchmark.py` times, each a function from a checkpoint's folder to a call (ids, mask) -> logits."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import minibert
from minibert import DistilBertForSequenceClassification, kernels
from minibert.model import TransformerBlock
from minibert.trial import choose_linear

SPEED_OF_LIGHT = "sgemm"
Run = Callable[[Tensor, Tensor], Any]


def minibert_eager(folder: Path) -> Run:
    """The model itself."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    return lambda ids, mask: model(ids, mask).logits


def packed(folder: Path, int8: bool = False) -> Run:
    """The fast path."""
    fast = minibert.pack(DistilBertForSequenceClassification.from_pretrained(folder), int8=int8)
    return lambda ids, mask: fast(ids, mask).logits


def packed_int8(folder: Path) -> Run:
    """The fast path in int8."""
    return packed(folder, int8=True)


def packed_plain(folder: Path) -> Run:
    """The fast path with torch's own linear layers, as on other CPUs."""
    for kernel in (kernels.MklLinear, kernels.OneDnnLinear):
        kernel.is_available = staticmethod(lambda: False)  # type: ignore[method-assign]
    return packed(folder)


def transformers_eager(folder: Path, attention: str = "eager") -> Run:
    """The transformers package, attention written out."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention).eval()
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


def transformers_sdpa(folder: Path) -> Run:
    """The transformers package as it comes."""
    return transformers_eager(folder, "sdpa")


def transformers_compile(folder: Path) -> Run:
    """The same, compiled for any shape."""
    return torch.compile(transformers_eager(folder, "sdpa"), dynamic=True)


def export_onnx(folder: Path) -> Path:
    """Write the transformers model as an ONNX file, and return where."""
    from transformers import AutoModelForSequenceClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    path = Path(tempfile.mkdtemp(dir=folder)) / "model.onnx"
    names = ["input_ids", "attention_mask"]
    ids = torch.ones(2, 8, dtype=torch.long)
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(Logits(), (ids, ids), path, input_names=names, dynamic_axes=axes, dynamo=False, opset_version=17)
    return path


def onnxruntime(folder: Path, int8: bool = False) -> Run:
    """ONNX Runtime with its optimizer for BERT."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    path = export_onnx(folder)
    optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=768).save_model_to_file(str(path))
    if int8:
        quantize_dynamic(path, path, per_channel=True, extra_options={"DefaultTensorType": 1})  # 1: float32
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs: the others' time
    session = ort.InferenceSession(path, options)
    return lambda ids, mask: session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def onnxruntime_int8(folder: Path) -> Run:
    """ONNX Runtime, weights and activations in int8."""
    return onnxruntime(folder, int8=True)


def openvino(folder: Path) -> Run:
    """OpenVINO in float32."""
    import openvino as ov

    hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(export_onnx(folder), "CPU", hints)
    return lambda ids, mask: compiled({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def ctranslate2(folder: Path, compute_type: str = "float32") -> Run:
    """CTranslate2's encoder, which drops padding too; the head in torch."""
    import ctranslate2 as ct2

    path = Path(tempfile.mkdtemp(dir=folder)) / "model"
    ct2.converters.TransformersConverter(str(folder)).convert(str(path))
    encoder = ct2.Encoder(str(path), compute_type=compute_type, intra_threads=torch.get_num_threads())
    model = DistilBertForSequenceClassification.from_pretrained(folder)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        return model.head(torch.from_numpy(np.array(encoder.forward_batch(rows).last_hidden_state)))

    return run


def ctranslate2_int8(folder: Path) -> Run:
    """CTranslate2 in int8."""
    return ctranslate2(folder, "int8")


def torch_encoder(folder: Path) -> Run:
    """nn.TransformerEncoder, whose fast path turns padded rows into a nested tensor."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    blocks = cast(list[TransformerBlock], list(model.distilbert.transformer.layer))
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True, layer_norm_eps=1e-12)
    encoder = nn.TransformerEncoder(layer, len(blocks), enable_nested_tensor=True).eval()
    for target, block in zip(encoder.layers, blocks, strict=True):
        attention = block.attention
        qkv = (attention.q_lin, attention.k_lin, attention.v_lin)
        parts: dict[str, nn.Module] = {
            "linear1": block.ffn.lin1,
            "linear2": block.ffn.lin2,
            "self_attn.out_proj": attention.out_lin,
        }
        parts |= {"norm1": block.sa_layer_norm, "norm2": block.output_layer_norm}
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        state |= {f"self_attn.in_proj_{key}": torch.cat([getattr(p, key) for p in qkv]) for key in ("weight", "bias")}
        target.load_state_dict(state)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        padding = None if mask.all() else mask == 0
        return model.head(encoder(model.distilbert.embeddings(ids), src_key_padding_mask=padding))

    return run


def sgemm(folder: Path) -> Run:
    """A product of two 2048 x 2048 matrices by the kernel of `packed`: what the machine can do."""
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    kernel = choose_linear(model)
    linear, a = nn.Linear(2048, 2048), torch.randn(2048, 2048)
    product = kernel.of(linear) if kernel else linear
    return lambda ids, mask: product(a)[:1, :2]  # as if logits


SYSTEMS: dict[str, Callable[[Path], Run]] = {
    "packed": packed,
    "packed-int8": packed_int8,
    "packed-plain": packed_plain,
    "minibert-eager": minibert_eager,
    "transformers-eager": transformers_eager,
    "transformers-sdpa": transformers_sdpa,
    "transformers-compile": transformers_compile,
    "onnxruntime": onnxruntime,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
    "ctranslate2-int8": ctranslate2_int8,
    "nn.TransformerEncoder": torch_encoder,
    SPEED_OF_LIGHT: sgemm,
}
