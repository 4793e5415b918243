#include "cli/engine_flags.h"

#include <cstdio>
#include <sstream>

namespace tessera::cli {

void EngineFlags::add_to(ArgParser& parser) {
  parser.group("Model and device");
  device.add_to(parser);
  parser.option("--tp", &tp, 1, 64, "devices that share every layer (tensor parallel)");
  parser.group("Memory");
  parser.option("--session-len", &session_len, 16, int64_t{1} << 24,
                "tokens of one conversation; default the model's own limit, at most 32768");
  parser.option("--max-batch-size", &options.max_batch_size, 1, 4096, "sequences in one step");
  parser.option("--cache-max-entry-count", &options.cache_max_entry_count, 0.0, 1.0,
                "fraction of the memory left after all else that the KV cache takes");
  parser.option("--kv-cache-tokens", &kv_cache_tokens, 16, int64_t{1} << 32,
                "tokens of KV cache, said outright; default what --cache-max-entry-count gives, on the CPU at most session-len x "
                "max-batch-size");
  parser.bytes("--gpu-memory-limit", &gpu_memory_limit, "memory a device may use in all; default all that is free");
  parser.option("--max-prefill-tokens", &prefill, 16, 1 << 20,
                "prompt tokens computed in one step; default 512 on the CPU, 4096 on a GPU");
  parser.option("--max-decode-wait", &decode_wait, 1.0, 60000.0,
                "milliseconds that a running answer may wait for its next token while pictures and prompts are computed; default 25, "
                "on the CPU 250");
  parser.bytes("--embedding-cache", &embedding_cache, "memory for embeddings of pictures; default room for four of the largest");
  parser.bytes("--tile-cache", &tile_cache,
               "host memory for tiles of pictures, of running requests and kept for the next; default the largest picture "
               "for each of max-batch-size answers, at most 64");
  parser.bytes("--preparation-memory", &preparation,
               "host memory for pictures that wait to be decoded and are decoded; default 32MiB on the CPU, 1GiB beside a GPU");
  parser.flag("--no-prefix-cache", &no_prefix_cache, "compute every prompt whole");
  parser.group("Pictures");
  parser.option("--max-dynamic-patch", &max_patch, 1, 128, "tiles of a picture at most; default the model's");
  parser.option("--min-dynamic-patch", &min_patch, 1, 128, "tiles of a picture at least; default the model's");
  parser.option("--vision-batch", &vision_batch, 1, 1024,
                "tiles encoded in one pass; default 4 on the CPU, a whole picture on a GPU");
  parser.choice("--exif-orientation", &exif_orientation, {"ignore", "apply"},
                "ignore is what the reference does; apply turns the picture first");
  parser.option("--max-image-pixels", &options.max_image_pixels, 1, int64_t{1} << 40, "pixels of a picture at most");
  parser.option("--max-image-side", &options.max_image_side, 1, 1 << 24, "pixels along a side at most");
  parser.option("--max-image-bytes", &options.max_image_bytes, 1, int64_t{1} << 40, "bytes of a picture file at most");
}

Status EngineFlags::finish() {
  TESSERA_ASSIGN_OR_RETURN(BackendOptions asked, device.backend_options());
  options.device = std::move(asked.device);
  options.dtype = device.dtype;
  options.isa = std::move(asked.isa);
  options.threads = asked.threads;
  options.limits = std::move(asked.limits);
  options.device_limits = std::move(asked.device_limits);
  options.tp = static_cast<int>(tp);
  options.session_len = session_len;
  options.kv_cache_tokens = kv_cache_tokens;
  options.gpu_memory_limit = gpu_memory_limit;
  options.max_prefill_tokens = prefill;
  options.embedding_cache_bytes = embedding_cache;
  options.tile_cache_bytes = tile_cache;
  options.preparation_bytes = preparation;
  options.prefix_cache = !no_prefix_cache;
  options.max_dynamic_patch = max_patch;
  options.min_dynamic_patch = min_patch;
  options.vision_batch = vision_batch;
  if (decode_wait) options.max_decode_wait_s = *decode_wait / 1000;
  options.exif_apply = exif_orientation == "apply";
  return {};
}

void SamplingFlags::add_to(ArgParser& parser) {
  parser.group("Generation");
  parser.option("-n,--max-new-tokens", &max_new_tokens, 1, int64_t{1} << 24,
                "new tokens at most; default to the session's end");
  parser.option("--temperature", &temperature, 0.0, 2.0, "0 is greedy; default the model's, else 0");
  parser.option("--top-p", &top_p, 1e-6, 1.0, "smallest set of tokens with this probability in all; default the model's, else 1");
  parser.option("--top-k", &top_k, 0, 1 << 20, "the k likeliest tokens; 0: all; default the model's, else 0");
  parser.option("--min-p", &min_p, 0.0, 1.0, "tokens with at least this share of the likeliest one's probability; default 0");
  parser.option("--repetition-penalty", &repetition, 1e-3, 10.0,
                "divides logits of tokens that occurred; default the model's, else 1: off");
  parser.option("--presence-penalty", &presence, -2.0, 2.0,
                "subtracted once from logits of tokens that were generated; default 0");
  parser.option("--frequency-penalty", &frequency, -2.0, 2.0,
                "subtracted from a logit for each time its token was generated; default 0");
  parser.option("--seed", &seed, 0, INT64_MAX, "the same seed gives the same text; default a new one each time");
  parser.list("--stop", &stop, "end the answer before this text; repeatable, at most 16");
  parser.flag("--ignore-eos", &ignore_eos, "go on past the end-of-answer token");
  parser.option("--system", &system, "system text in place of the template's own");
  parser.option("--markup-tokens", &markup, "grounding tokens let through: any of ref,box,quad");
}

void SamplingFlags::add_logprobs_to(ArgParser& parser) {
  parser.option("--logprobs", &logprobs, 0, 20,
                "report each new token's logprob and this many alternatives; needs --json or --input");
}

Status SamplingFlags::apply(Request& request) const {
  SamplingOptions& s = request.sampling;
  s.temperature = temperature;
  s.top_p = top_p;
  s.top_k = top_k;
  s.min_p = min_p;
  s.repetition_penalty = repetition;
  s.presence_penalty = presence;
  s.frequency_penalty = frequency;
  if (seed) s.seed = static_cast<uint64_t>(*seed);
  request.max_new_tokens = max_new_tokens;
  request.stop = stop;
  request.ignore_eos = ignore_eos;
  request.logprobs = logprobs ? static_cast<int>(*logprobs) : -1;
  std::istringstream names(markup);
  for (std::string name; std::getline(names, name, ',');) {
    if (name != "ref" && name != "box" && name != "quad")
      return invalid_input("--markup-tokens has \"" + name + "\"; expected ref, box, quad");
    request.markup_tokens.push_back(name);
  }
  return {};
}

int exit_code(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return 0;
    case StatusCode::kInvalidInput:
    case StatusCode::kUnprocessable:
    case StatusCode::kTooLong: return 2;
    case StatusCode::kDoesNotFit: return 3;
    default: return 1;
  }
}

int fail(const std::string& command, const Status& status) {
  std::fprintf(stderr, "tessera %s: %s\n", command.c_str(), status.message().c_str());
  return exit_code(status);
}

}  // namespace tessera::cli
