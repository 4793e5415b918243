#include "ops/sample.h"

#include "ops/door.h"

namespace tessera {

void sample(const OpContext& ctx, const SampleArgs& args) {
  const int64_t rows = args.logits.rows();
  const int64_t vocab = args.logits.row_elements();
  check_tensor("sample", "logits", args.logits, DType::kF32, -1, -1);
  TESSERA_CHECK(args.valid_ids >= 1 && args.valid_ids <= vocab,
                "[sample] valid_ids " + std::to_string(args.valid_ids) + " of " + std::to_string(vocab));
  check_tensor("sample", "params", args.params, DType::kU8, rows, sizeof(SamplingRow));
  if (args.edits) check_tensor("sample", "edits", args.edits, DType::kU8, -1, sizeof(LogitEdit));
  if (args.masks) check_tensor("sample", "masks", args.masks, DType::kI32, -1, (vocab + 31) / 32);
  TESSERA_CHECK(args.max_top_logprobs >= 0 && args.max_top_logprobs <= kMaxTopLogprobs,
                "[sample] max_top_logprobs " + std::to_string(args.max_top_logprobs) + "; the limit is " +
                    std::to_string(kMaxTopLogprobs));
  check_vector("sample", "out_ids", args.out_ids, DType::kI32, rows);
  check_vector("sample", "out_logprobs", args.out_logprobs, DType::kF32, rows);
  if (args.max_top_logprobs > 0) {
    check_tensor("sample", "out_top_ids", args.out_top_ids, DType::kI32, rows, kMaxTopLogprobs);
    check_tensor("sample", "out_top_logprobs", args.out_top_logprobs, DType::kF32, rows, kMaxTopLogprobs);
  }
  TESSERA_CHECK(!args.found || args.found->parts == 0 ||
                    (args.all_greedy && !args.edits && !args.masks && args.max_top_logprobs == 0 && args.found->valid_ids == args.valid_ids),
                "[sample] more is asked of the rows than was found");
  if (rows == 0) return;
  kernel_of("sample", ctx, &KernelTable::sample)(*ctx.stream, args);
}

}  // namespace tessera
