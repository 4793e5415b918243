#include "text/prompt_builder.h"

#include "text/unicode.h"

namespace tessera {

PromptBuilder::PromptBuilder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
  if (const auto bos = tokenizer.add_bos()) ids_.push_back(*bos);
}

void PromptBuilder::token(int32_t id) { repeat(id, 1); }

int64_t PromptBuilder::repeat(int32_t id, int64_t count) {
  flush(id);
  const auto first = static_cast<int64_t>(ids_.size());
  ids_.insert(ids_.end(), static_cast<size_t>(count), id);
  last_ = id;
  return first;
}

void PromptBuilder::flush(int32_t next) {
  size_t begin = 0, end = run_.size();
  if (last_ >= 0 && tokenizer_->strips_right(last_)) begin = end_of_space_after(run_, 0);
  if (next >= 0 && tokenizer_->strips_left(next)) end = begin_of_space_before(run_, end, begin);
  if (end > begin) {
    const auto ids = tokenizer_->encode(std::string_view(run_).substr(begin, end - begin), last_ < 0);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
  run_.clear();
}

std::vector<int32_t> PromptBuilder::take() {
  flush(-1);
  last_ = -1;
  return std::move(ids_);
}

}  // namespace tessera
