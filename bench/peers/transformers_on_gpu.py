#!/usr/bin/env python3
"""`tessera bench` rows of InternVL3's shapes beside PyTorch + transformers on one GPU: random bf16 weights, SDPA, eager; decode
steps also as a replayed CUDA graph over a static cache, where transformers lets one be captured.

  python3 bench/peers/transformers_on_gpu.py --tessera build/tessera [--shape InternVL3-8B] [--out FILE.md]

The two sides run one after the other on the same GPU (each fills its memory). Times in ms, median of 10 after 3 warm-ups,
from events around single runs. Ratios are peer / Tessera: above 1, Tessera is faster.
"""
import argparse
import datetime
import json
import statistics
import subprocess

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

LANGUAGE = {
    "InternVL3-1B": dict(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                         intermediate_size=4864),
    "InternVL3-8B": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                         intermediate_size=18944),
}
VOCABULARY = 151674
ROWS = ("vit_1_tile", "vit_7_tiles", "vit_13_tiles", "prefill_512", "prefill_3392", "decode_batch_1", "decode_batch_64")
BF16 = torch.bfloat16


def median_ms(body, warm_ups=3, rounds=10):
    for _ in range(warm_ups):
        body()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        body()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Peer:
    def __init__(self, shape):
        torch.manual_seed(0)
        torch.set_default_device("cuda")
        torch.set_default_dtype(BF16)
        vision = InternVLVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                                      image_size=[448, 448], patch_size=[14, 14], attention_bias=True,
                                      use_mean_pooling=False, norm_type="layer_norm")
        self.vision = InternVLVisionModel(vision).eval()
        config = Qwen2Config(vocab_size=VOCABULARY, max_position_embeddings=32768, tie_word_embeddings=False, **LANGUAGE[shape])
        self.config = config
        self.llm = Qwen2ForCausalLM(config).eval()

    def vit(self, tiles):
        pixels = torch.randn(tiles, 3, 448, 448, dtype=BF16)
        return median_ms(lambda: self.vision(pixels))

    def prefill(self, tokens):
        ids = torch.randint(0, 100000, (1, tokens))
        return median_ms(lambda: self.llm(ids, use_cache=True, logits_to_keep=1))

    def static_cache(self, batch, context):
        cache = StaticCache(config=self.config, max_cache_len=context + 64, max_batch_size=batch, device="cuda", dtype=BF16)
        ids = torch.randint(0, 100000, (batch, 16))
        self.llm(ids, past_key_values=cache, use_cache=True, cache_position=torch.arange(16), logits_to_keep=1)
        return cache

    def decode(self, batch, context):
        """Eager over a growing cache, and a graph over a static one (masked attention over all of its room)."""
        ids = torch.randint(0, 100000, (batch, 1))
        past = None
        for begin in range(0, context - 1, 256):
            chunk = torch.randint(0, 100000, (batch, min(256, context - 1 - begin)))
            past = self.llm(chunk, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

        def eager():
            self.llm(ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits.argmax(-1)
            past.crop(context - 1)

        result = {"eager": median_ms(eager)}
        del past
        try:
            cache = self.static_cache(batch, context)
            position = torch.tensor([context - 1])
            step = lambda: self.llm(ids, past_key_values=cache, use_cache=True, cache_position=position,
                                    position_ids=position.expand(batch, 1), logits_to_keep=1).logits.argmax(-1)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            result["graph"] = median_ms(graph.replay)
        except Exception as error:  # a release that can't be captured: the eager figure stands alone
            result["graph_error"] = str(error).splitlines()[0][:120]
        torch.cuda.empty_cache()
        return result

    def run(self, row):
        kind, number = row.split("_")[0], int(next(part for part in row.split("_") if part.isdigit()))
        with torch.inference_mode():
            if kind == "vit":
                return {"eager": self.vit(number)}
            if kind == "prefill":
                return {"eager": self.prefill(number)}
            return self.decode(number, 512 if number == 1 else 1024)


def own_rows(binary, shape, rows):
    command = [binary, "bench", "--shape", shape, "--dtype", "bf16", "--device", "cuda", "--repeat", "10", "--json", "--only", ",".join(rows)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["name"]: row["median"] for row in report["rows"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="build/tessera")
    parser.add_argument("--shape", choices=list(LANGUAGE), default="InternVL3-8B")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out")
    arguments = parser.parse_args()
    own = own_rows(arguments.tessera, arguments.shape, arguments.rows)
    peer = Peer(arguments.shape)
    lines = [f"# {arguments.shape}'s shape on {torch.cuda.get_device_name()}, bf16, ms", "",
             f"{datetime.date.today()}, torch {torch.__version__}. Peer: transformers with SDPA.", "",
             "| row | tessera | eager | eager / tessera | graph | graph / tessera |", "|---|---|---|---|---|---|"]
    for row in arguments.rows:
        times = peer.run(row)
        graph = f"{times['graph']:.2f} | {times['graph'] / own[row]:.2f}" if "graph" in times else f"{times.get('graph_error', '-')} | -"
        lines.append(f"| {row} | {own[row]:.2f} | {times['eager']:.2f} | {times['eager'] / own[row]:.2f} | {graph} |")
        print(lines[-1], flush=True)
    if arguments.out:
        with open(arguments.out, "w") as out:
            out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
