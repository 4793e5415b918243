#!/usr/bin/env python3
"""One ViT tile, a prefill of 512 tokens and a decode step at InternVL3-1B's shape: Tessera, PyTorch + transformers and
llama.cpp in turns, random bf16 weights, the same number of threads.

Every round runs each side once, one after the other, so that a machine whose speed swings treats all alike. The table
shows medians and minima over the rounds, and ratios peer / Tessera of the medians (above 1: Tessera is faster).

  python3 -m venv peers && peers/bin/pip install torch transformers numpy gguf llama-cpp-python
  (where PyPI's torch brings GPU libraries: add --index-url of PyTorch's CPU builds)
  cmake --build build --target tessera
  peers/bin/python bench/peers/language_and_vision.py --tessera build/tessera --rounds 5 [--out bench/results/FILE.md]

A side that is not installed is left out and named.
"""
import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROWS = ("vit_1_tile", "prefill_512", "decode_batch_1")
# InternVL3-1B: InternViT-300M and Qwen2.5-0.5B.
VIT = dict(hidden=1024, layers=24, heads=16, ffn=4096, tokens=1025, projector_out=896)
LLM = dict(hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151674)
DECODE_CONTEXT = 512


def timed(body):
    begin = time.perf_counter()
    body()
    return 1e3 * (time.perf_counter() - begin)


class Tessera:
    name = "tessera"

    def __init__(self, binary, threads):
        self.command = [binary, "bench", "--shape", "InternVL3-1B", "--dtype", "bf16", "--device", "cpu",
                        "--threads", str(threads), "--repeat", "3", "--json", "--only"]
        self.probes = None

    def run(self, row):
        report = json.loads(subprocess.run(self.command + [row], check=True, capture_output=True, text=True).stdout)
        self.probes = report["probes"]
        return report["rows"][0]["median"]


class Torch:
    """The tower as transformers' InternVL vision model runs it (SDPA), the language model as Qwen2ForCausalLM; each only
    where a row needs it."""

    def __init__(self, threads, dtype_name, rows):
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
        from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
        from transformers.models.internvl.modeling_internvl import InternVLVisionModel
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.name = torch, "torch " + dtype_name
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype_name]
        with torch.inference_mode():
            if "vit_1_tile" in rows:
                vision = InternVLVisionConfig(hidden_size=VIT["hidden"], num_hidden_layers=VIT["layers"],
                                              num_attention_heads=VIT["heads"], intermediate_size=VIT["ffn"],
                                              image_size=[448, 448], patch_size=[14, 14], attention_bias=True,
                                              use_mean_pooling=False, norm_type="layer_norm")
                self.vision = InternVLVisionModel(vision).to(dtype).eval()
                self.pixels = torch.randn(1, 3, 448, 448).to(dtype)
            if rows != ["vit_1_tile"]:
                config = Qwen2Config(hidden_size=LLM["hidden"], num_hidden_layers=LLM["layers"], vocab_size=LLM["vocab"],
                                     num_attention_heads=LLM["heads"], num_key_value_heads=LLM["kv_heads"],
                                     intermediate_size=LLM["ffn"], max_position_embeddings=32768,
                                     tie_word_embeddings=False)
                self.llm = Qwen2ForCausalLM(config).to(dtype).eval()
                self.ids = torch.randint(0, 100000, (1, DECODE_CONTEXT))
                self.past = self.llm(self.ids, use_cache=True, logits_to_keep=1).past_key_values

    def once(self, row):
        with self.torch.inference_mode():
            if row == "vit_1_tile":
                self.vision(self.pixels)
            elif row == "prefill_512":
                self.llm(self.ids, use_cache=True, logits_to_keep=1)
            else:
                self.llm(self.ids[:, :1], past_key_values=self.past, use_cache=True, logits_to_keep=1)
                self.past.crop(-1)  # the token that was just added

    def run(self, row):
        self.once(row)
        return statistics.median(timed(lambda: self.once(row)) for _ in range(3))


def write_gguf(path):
    """The language model's shape with random bf16 weights, in llama.cpp's format, with a vocabulary of its size."""
    import gguf
    import numpy as np
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(32768)
    writer.add_embedding_length(LLM["hidden"])
    writer.add_block_count(LLM["layers"])
    writer.add_feed_forward_length(LLM["ffn"])
    writer.add_head_count(LLM["heads"])
    writer.add_head_count_kv(LLM["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tokens = [f"<t{i}>" for i in range(LLM["vocab"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def matrix(name, rows, cols):
        values = generator.standard_normal((rows, cols), dtype=np.float32) * (cols ** -0.5)
        writer.add_tensor(name, gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16),
                          raw_dtype=gguf.GGMLQuantizationType.BF16)

    def vector(name, size, value):
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    hidden, kv = LLM["hidden"], LLM["kv_heads"] * LLM["hidden"] // LLM["heads"]
    matrix("token_embd.weight", LLM["vocab"], hidden)
    matrix("output.weight", LLM["vocab"], hidden)
    vector("output_norm.weight", hidden, 1)
    for layer in range(LLM["layers"]):
        prefix = f"blk.{layer}."
        for name, rows, cols in (("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden),
                                 ("attn_output", hidden, hidden), ("ffn_gate", LLM["ffn"], hidden),
                                 ("ffn_up", LLM["ffn"], hidden), ("ffn_down", hidden, LLM["ffn"])):
            matrix(prefix + name + ".weight", rows, cols)
        for name, size in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)):
            vector(prefix + name + ".bias", size, 0)
        for name in ("attn_norm", "ffn_norm"):
            vector(prefix + name + ".weight", hidden, 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    name = "llama.cpp bf16"

    def __init__(self, threads, path):
        from llama_cpp import Llama
        if not os.path.exists(path):
            write_gguf(path)
        self.llm = Llama(model_path=path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads,
                         n_threads_batch=threads, verbose=False, logits_all=False)
        self.ids = [(i * 7919 + 13) % 100000 for i in range(DECODE_CONTEXT)]

    def once(self, row):
        if row == "prefill_512":
            self.llm.reset()
            return timed(lambda: self.llm.eval(self.ids))
        if self.llm.n_tokens < DECODE_CONTEXT or self.llm.n_tokens > DECODE_CONTEXT + 64:
            self.llm.reset()
            self.llm.eval(self.ids)
        return timed(lambda: self.llm.eval(self.ids[:1]))

    def run(self, row):
        if row == "vit_1_tile":
            return None
        self.once(row)
        return statistics.median(self.once(row) for _ in range(3))


def sides(arguments):
    yield Tessera(arguments.tessera, arguments.threads)
    missing = []
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        yield Torch(arguments.threads, "bf16", arguments.rows)
        yield Torch(arguments.threads, "f32", arguments.rows)
    else:
        missing.append("torch + transformers")
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        yield LlamaCpp(arguments.threads, arguments.gguf)
    else:
        missing.append("llama-cpp-python + gguf")
    for name in missing:
        print(f"left out, not installed: {name}", file=sys.stderr)


def cpu_name():
    with open("/proc/cpuinfo") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(runners, times, arguments):
    lines = [f"# One tile, prefill of 512, one decode step at context {DECODE_CONTEXT}: InternVL3-1B's shape", "",
             f"{datetime.date.today()}, {cpu_name()}, {arguments.threads} threads, {arguments.rounds} rounds in turns, load average at "
             f"the end {os.getloadavg()[0]:.1f}. Times in ms, median (minimum) over the rounds; a ratio is that of medians, peer / Tessera.",
             f"Probes: {runners[0].probes['matrix_flops'] * 1e-9:.0f} GFLOP/s, {runners[0].probes['read_bytes_per_s'] * 1e-9:.1f} GB/s.", "",
             "| row | " + " | ".join(r.name for r in runners) + " | " + " | ".join(r.name + " / tessera" for r in runners[1:]) + " |",
             "|---" * (2 * len(runners)) + "|"]
    for row in arguments.rows:
        cells, ratios = [], []
        own = statistics.median(times[runners[0].name, row])
        for runner in runners:
            values = [v for v in times[runner.name, row] if v is not None]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f})" if values else "-")
            ratios.append(f"{statistics.median(values) / own:.2f}" if values else "-")
        lines.append(f"| {row} | " + " | ".join(cells) + " | " + " | ".join(ratios[1:]) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="build/tessera")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--gguf", default=os.path.join(tempfile.gettempdir(), "internvl3-1b-shape-bf16.gguf"))
    parser.add_argument("--out", help="also write the table to this file")
    arguments = parser.parse_args()
    runners = list(sides(arguments))
    times = {(r.name, row): [] for r in runners for row in arguments.rows}
    for number in range(arguments.rounds):
        for row in arguments.rows:
            for runner in runners:
                times[runner.name, row].append(runner.run(row))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    text = table(runners, times, arguments)
    print(text)
    if arguments.out:
        with open(arguments.out, "w") as out:
            out.write(text)


if __name__ == "__main__":
    main()
