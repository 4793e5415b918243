#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tessera/status.h"

namespace tessera {

/// How tokens are chosen. Absent fields take the model's generation_config.json where it samples (`do_sample`), else
/// the stated default. Bounds are checked at the doors (command line, HTTP) and again by submit().
struct SamplingOptions {
  std::optional<double> temperature;         ///< 0..2; 0 is greedy (the default)
  std::optional<double> top_p;               ///< (0, 1], default 1
  std::optional<int64_t> top_k;              ///< 0 is off (the default)
  std::optional<double> min_p;               ///< 0..1, default 0
  std::optional<double> repetition_penalty;  ///< (0, 10], default 1: prompt and new tokens
  std::optional<double> presence_penalty;    ///< -2..2, default 0: new tokens
  std::optional<double> frequency_penalty;   ///< -2..2, default 0: new tokens
  std::optional<uint64_t> seed;              ///< the same seed gives the same text
  std::map<int32_t, double> logit_bias;      ///< added to the logit, -100..100
};

/// A picture of a request: its encoded bytes (JPEG, PNG, ...) and its limits.
struct ImageInput {
  std::string bytes;
  std::string name;                          ///< for messages: a path, or empty
  std::optional<int64_t> max_dynamic_patch;  ///< 1..128; default the engine's
  std::optional<int64_t> min_dynamic_patch;  ///< 1..128
};

/// Text, or the place of a picture (an index into Request::images).
struct ContentPart {
  std::string text;
  int image = -1;  ///< >= 0: a picture; text is not looked at
};

struct Message {
  std::string role;  ///< system, user, assistant
  std::vector<ContentPart> content;
};

/// What the answer's text must be.
struct ResponseFormat {
  enum class Kind { kText, kJsonObject, kJsonSchema };
  Kind kind = Kind::kText;
  std::string schema;  ///< JSON text of the schema
};

/// One conversation to continue, or (messages empty) one raw prompt.
struct Request {
  std::string id;  ///< shown in logs and results; not interpreted
  std::vector<Message> messages;
  std::string prompt;           ///< raw completion: plain text, no template
  std::vector<ImageInput> images;
  bool image_placeholders = false;  ///< `<image>` in message text is a placeholder (run, chat, JSONL), see product.md
  SamplingOptions sampling;
  std::optional<int64_t> max_new_tokens;  ///< default: to the session's end
  std::vector<std::string> stop;
  bool ignore_eos = false;
  int logprobs = -1;                       ///< -1: none; 0..20 alternatives with each new token
  int n = 1;                               ///< answers, 1..16
  ResponseFormat response_format;
  std::vector<std::string> markup_tokens;  ///< of ref, box, quad
  bool parse_special = false;              ///< prompt only: control tokens in the text are parsed
  std::string cache_salt;                  ///< prompts share cached work only when salts are equal
  std::string client;                      ///< fairness is between clients
  int priority = 0;                        ///< larger goes first
  std::optional<double> deadline_s;        ///< from submission; kDeadline after it
};

/// What became of a picture.
struct ImageInfo {
  int64_t width = 0;
  int64_t height = 0;
  int64_t columns = 0;
  int64_t rows = 0;
  int64_t tiles = 0;  ///< thumbnail included
};

struct TokenLogprob {
  int32_t token_id = 0;
  double logprob = 0;
  std::vector<std::pair<int32_t, double>> top;
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

struct Timings {
  double preprocess_s = 0;
  double queue_s = 0;
  double encode_s = 0;
  double prefill_s = 0;
  double decode_s = 0;
};

/// Known when the prompt is ready, before the first token.
struct PromptInfo {
  int64_t prompt_tokens = 0;
  int64_t image_tokens = 0;
  std::vector<ImageInfo> images;
};

/// New text of one answer. Text never ends inside a character or a possible stop string.
struct Delta {
  int index = 0;  ///< which of the n answers
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;  ///< one each token_id when asked for
};

/// The end of one answer.
struct Finish {
  int index = 0;
  FinishReason reason = FinishReason::kStop;
  Status status;                  ///< why, for kError (and kCancelled by a deadline)
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;      ///< prompt tokens that were not computed again
  Timings timings;
};

}  // namespace tessera
