#include "server/openai_output.h"

#include <algorithm>

#include "server/json_text.h"

namespace tessera::server {
namespace {

void append_head(std::string& out, const AnswerShape& shape, bool chunk) {
  out += "{\"id\":\"";
  out += shape.id;
  out += "\",\"object\":\"";
  out += !shape.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  out += "\",\"created\":";
  out += std::to_string(shape.created);
  out += ",\"model\":";
  append_json_string(out, shape.model);
  out += ",\"choices\":[";
}

void append_usage(std::string& out, const Usage& usage) {
  out += "{\"prompt_tokens\":" + std::to_string(usage.prompt_tokens) +
         ",\"completion_tokens\":" + std::to_string(usage.completion_tokens) +
         ",\"total_tokens\":" + std::to_string(usage.prompt_tokens + usage.completion_tokens) +
         ",\"prompt_tokens_details\":{\"cached_tokens\":" + std::to_string(usage.cached_tokens) +
         ",\"image_tokens\":" + std::to_string(usage.image_tokens) + "}}";
}

void close_chunk(std::string& out, const AnswerShape& shape) {
  out += shape.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n";
}

void append_chat_token(std::string& out, const std::string& piece, double logprob) {
  out += "{\"token\":";
  append_json_string(out, piece);
  out += ",\"logprob\":";
  append_json_number(out, logprob);
  out += ",\"bytes\":[";
  for (size_t i = 0; i < piece.size(); ++i) {
    if (i) out += ',';
    out += std::to_string(static_cast<unsigned char>(piece[i]));
  }
  out += ']';
}

int64_t character_count(std::string_view text) {
  int64_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

}  // namespace

const char* finish_word(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
    case FinishReason::kError:
      break;
  }
  return "error";
}

void LogprobText::append(Engine& engine, std::span<const TokenLogprob> tokens, int alternatives) {
  for (const TokenLogprob& token : tokens) {
    const std::string piece = engine.piece(token.token_id);
    const std::string comma = any_ ? "," : "";
    any_ = true;
    const size_t shown = std::min(token.top.size(), static_cast<size_t>(std::max(alternatives, 0)));
    if (chat_) {
      content_ += comma;
      append_chat_token(content_, piece, token.logprob);
      content_ += ",\"top_logprobs\":[";
      for (size_t k = 0; k < shown; ++k) {
        if (k) content_ += ',';
        append_chat_token(content_, engine.piece(token.top[k].first), token.top[k].second);
        content_ += '}';
      }
      content_ += "]}";
      continue;
    }
    content_ += comma;
    append_json_string(content_, piece);
    values_ += comma;
    append_json_number(values_, token.logprob);
    offsets_ += comma + std::to_string(offset_);
    offset_ += character_count(piece);
    tops_ += comma + "{";
    std::vector<std::string>
        seen;  // two pieces of broken characters may read alike; an object names each once
    for (size_t k = 0; k < shown; ++k) {
      std::string name;
      append_json_string(name, engine.piece(token.top[k].first));
      if (std::find(seen.begin(), seen.end(), name) != seen.end()) continue;
      tops_ += (seen.empty() ? "" : ",") + name + ":";
      append_json_number(tops_, token.top[k].second);
      seen.push_back(std::move(name));
    }
    tops_ += '}';
  }
}

std::string LogprobText::text() const {
  if (!any_) return "null";
  if (chat_) return "{\"content\":[" + content_ + "],\"refusal\":null}";
  return "{\"tokens\":[" + content_ + "],\"token_logprobs\":[" + values_ + "],\"top_logprobs\":[" + tops_ +
         "],\"text_offset\":[" + offsets_ + "]}";
}

void LogprobText::clear() {
  any_ = false;
  for (std::string* part : {&content_, &values_, &tops_, &offsets_}) part->clear();
}

void append_text_chunk(std::string& out, const AnswerShape& shape, int index, std::string_view text,
                       bool first, const std::string& logprobs) {
  out += "data: ";
  append_head(out, shape, true);
  out += "{\"index\":";
  out += std::to_string(index);
  if (shape.chat) {
    out += first ? ",\"delta\":{\"role\":\"assistant\",\"content\":" : ",\"delta\":{\"content\":";
    append_json_string(out, text);
    out += '}';
  } else {
    out += ",\"text\":";
    append_json_string(out, text);
  }
  out += ",\"logprobs\":";
  out += logprobs;
  out += ",\"finish_reason\":null}";
  close_chunk(out, shape);
}

void append_finish_chunk(std::string& out, const AnswerShape& shape, int index, FinishReason reason) {
  out += "data: ";
  append_head(out, shape, true);
  out += "{\"index\":" + std::to_string(index) + (shape.chat ? ",\"delta\":{}" : ",\"text\":\"\"") +
         ",\"logprobs\":null,\"finish_reason\":\"" + finish_word(reason) + "\"}";
  close_chunk(out, shape);
}

void append_usage_chunk(std::string& out, const AnswerShape& shape, const Usage& usage) {
  out += "data: ";
  append_head(out, shape, true);
  out += "],\"usage\":";
  append_usage(out, usage);
  out += "}\n\n";
}

std::string answer_body(const AnswerShape& shape, std::span<const Choice> choices, const Usage& usage) {
  std::string out;
  append_head(out, shape, false);
  for (size_t i = 0; i < choices.size(); ++i) {
    const Choice& choice = choices[i];
    out += (i ? ",{\"index\":" : "{\"index\":") + std::to_string(i);
    if (shape.chat) {
      out += ",\"message\":{\"role\":\"assistant\",\"content\":";
      append_json_string(out, choice.text);
      out += ",\"refusal\":null}";
    } else {
      out += ",\"text\":";
      append_json_string(out, choice.text);
    }
    out += ",\"logprobs\":" + choice.logprobs + ",\"finish_reason\":\"" + finish_word(choice.reason) + "\"}";
  }
  out += "],\"usage\":";
  append_usage(out, usage);
  return out + "}";
}

}  // namespace tessera::server
