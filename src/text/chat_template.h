#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/checkpoint_format.h"
#include "core/result.h"
#include "tessera/request.h"
#include "text/tokenizer.h"

namespace tessera {

/// One turn: a role and its parts, text or the place of a picture. The public interface's type.
using ChatMessage = Message;

/// Where a picture's embeddings go: ids[first, first + count) are `<IMG_CONTEXT>`.
struct ImageSpan {
  int image_index = 0;  ///< index as in ContentPart::image
  int64_t first = 0;
  int64_t count = 0;
};

struct RenderedPrompt {
  std::vector<int32_t> ids;       ///< BOS included where the tokenizer adds one
  std::vector<ImageSpan> images;  ///< in the order of the prompt
};

struct RenderOptions {
  /// Literal `<image>` in the text of a message with pictures is a placeholder (run, chat, JSONL).
  bool image_placeholders = true;
  /// Of "ref", "box", "quad": these tokens and their ends may be used in text.
  std::vector<std::string> markup_tokens;
  /// Append the role prefix of the answer. Off only to see a conversation as it is kept.
  bool generation_prompt = true;
};

/// Renders conversations into token ids by a checkpoint's template. Control tokens come from the template alone;
/// what a person writes is plain text. Immutable after creation; thread-safe. The tokenizer must outlive it.
class ChatTemplate {
 public:
  /// OpenGVLab format: `name` is config.json's `template` (internlm2-chat, Hermes-2, phi3-chat, internvl2_5; others
  /// are refused by name); `system_message` is config.json's, where it is set, and replaces the template's own.
  static Result<std::unique_ptr<ChatTemplate>> create(const Tokenizer& tokenizer, const std::string& name,
                                                      std::optional<std::string> system_message = std::nullopt);

  /// -hf format: `chat_template` is the text of the checkpoint's template, which must be one of the published
  /// ChatML forms. A template that is something else is refused.
  static Result<std::unique_ptr<ChatTemplate>> create_hf(const Tokenizer& tokenizer,
                                                         const std::string& chat_template);

  /// Reads what the format needs from a checkpoint directory (config.json; for -hf chat_template.jinja,
  /// chat_template.json or tokenizer_config.json) and creates the template.
  static Result<std::unique_ptr<ChatTemplate>> load(const Tokenizer& tokenizer, const std::string& directory,
                                                    CheckpointFormat format);

  virtual ~ChatTemplate() = default;

  /// The prompt of a conversation. `image_tokens[i]` is the number of embeddings of picture i (tiles times tokens a
  /// tile); every ContentPart::image indexes it. Errors (kInvalidInput): an unknown role, a system message that is
  /// not the first, no messages, a number of `<image>` that differs from the message's pictures, invalid UTF-8.
  virtual Result<RenderedPrompt> render(std::span<const ChatMessage> messages, std::span<const int64_t> image_tokens,
                                        const RenderOptions& options = {}) const = 0;

  /// Ids that end an answer by the template; generation_config.json's are added by the caller.
  virtual std::vector<int32_t> stop_ids() const = 0;
  virtual int32_t image_context_id() const = 0;

  /// The ids that `markup_tokens` make visible in answers (DecodeOptions::visible_control). Errors name an unknown
  /// word or a tokenizer without these tokens.
  virtual Result<std::vector<int32_t>> markup_ids(std::span<const std::string> markup_tokens) const = 0;
};

}  // namespace tessera
