#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "backends/cpu/cpu_stream.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/sample_workspace.h"

namespace tessera::cpu {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

class Row {
 public:
  Row(CpuStream& stream, const SampleArgs& args, int64_t row, int32_t* order)
      : leaf_(stream.leaf),
        args_(args),
        row_(row),
        params_(*reinterpret_cast<const SamplingRow*>(args.params.row<const uint8_t>(row))),
        logits_(args.logits.row<float>(row)),
        vocab_(args.logits.row_elements()),
        order_(order) {}

  void run() {
    const float largest = logits_[leaf_.argmax(logits_, vocab_)];
    const double log_sum = std::log(leaf_.sum_exp(logits_, vocab_, largest)) + largest;
    if (args_.max_top_logprobs > 0) report_top(log_sum);
    args_.out_ids.ptr<int32_t>()[row_] = choose(log_sum);
  }

 private:
  bool before(int32_t a, int32_t b) const { return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b; }

  void report_top(double log_sum) {
    const auto count = static_cast<size_t>(std::min<int64_t>(params_.top_logprobs, args_.valid_ids));
    auto* ids = args_.out_top_ids.row<int32_t>(row_);
    auto* values = args_.out_top_logprobs.row<float>(row_);
    // A short insertion list: far cheaper than sorting a vocabulary.
    size_t filled = 0;
    for (int32_t id = 0; id < args_.valid_ids && count > 0; ++id) {
      if (filled == count && !(logits_[id] > logits_[ids[filled - 1]])) continue;
      size_t at = filled < count ? filled++ : count - 1;
      for (; at > 0 && before(id, ids[at - 1]); --at) ids[at] = ids[at - 1];
      ids[at] = id;
    }
    for (size_t i = 0; i < filled; ++i) values[i] = static_cast<float>(logits_[ids[i]] - log_sum);
  }

  /// The unedited logit of the chosen id is needed afterwards, so edits are undone by remembering it.
  int32_t choose(double log_sum) {
    const auto edited = remember();
    edit();
    const int32_t id = params_.temperature > 0 ? draw() : static_cast<int32_t>(leaf_.argmax(logits_, args_.valid_ids));
    float unedited = logits_[id];
    for (const auto& [token, logit] : edited)
      if (token == id) unedited = logit;
    args_.out_logprobs.ptr<float>()[row_] = static_cast<float>(unedited - log_sum);
    return id;
  }

  std::vector<std::pair<int32_t, float>> remember() const {
    std::vector<std::pair<int32_t, float>> values;
    values.reserve(static_cast<size_t>(params_.edits_end - params_.edits_begin));
    for (int32_t e = params_.edits_begin; e < params_.edits_end; ++e) {
      const int32_t token = edit_at(e).token;
      values.emplace_back(token, logits_[token]);
    }
    return values;
  }

  const LogitEdit& edit_at(int32_t e) const {
    return *reinterpret_cast<const LogitEdit*>(args_.edits.row<const uint8_t>(e));
  }

  void edit() {
    for (int32_t e = params_.edits_begin; e < params_.edits_end; ++e) {
      const LogitEdit& edit = edit_at(e);
      float& logit = logits_[edit.token];
      logit = (logit > 0 ? logit / edit.repetition : logit * edit.repetition) - edit.subtract;
    }
    if (params_.mask_row < 0) return;
    const auto* mask = args_.masks.row<const uint32_t>(params_.mask_row);
    for (int64_t id = 0; id < args_.valid_ids; ++id)
      if (!(mask[id / 32] >> (id % 32) & 1)) logits_[id] = kForbidden;
  }

  float probability(int32_t id) const { return std::exp((logits_[id] - largest_) / params_.temperature); }

  /// Sorts order_[0, count) (the `count` best of all candidates); what lies behind stays unsorted.
  void sort_best(int64_t count) {
    count = std::min(count, candidates_);
    if (count <= sorted_) return;
    const auto compare = [this](int32_t a, int32_t b) { return before(a, b); };
    if (count < candidates_) std::nth_element(order_ + sorted_, order_ + count, order_ + candidates_, compare);
    std::sort(order_ + sorted_, order_ + count, compare);
    sorted_ = count;
  }

  /// The i-th best; sorts more, eight times as much each time.
  int32_t best(int64_t i) {
    if (i >= sorted_) sort_best(std::max<int64_t>(256, sorted_ * 8));
    return order_[i];
  }

  void collect() {
    const int64_t top = leaf_.argmax(logits_, args_.valid_ids);
    largest_ = logits_[top];
    candidates_ = sorted_ = 0;
    for (int32_t id = 0; id < args_.valid_ids; ++id)
      if (logits_[id] > kForbidden) order_[candidates_++] = id;
    if (params_.top_k > 0 && params_.top_k < candidates_) {
      sort_best(params_.top_k);
      candidates_ = params_.top_k;
    }
  }

  int32_t draw() {
    collect();
    if (candidates_ == 0) return 0;  // everything is masked: no choice is right, the lowest id stands for none
    double total = 0;
    for (int64_t i = 0; i < candidates_; ++i) total += probability(order_[i]);
    const double kept = keep(total);
    const double target = uniform(params_.seed, params_.draw) * kept;
    double sum = 0;
    int64_t i = 0;
    for (; i + 1 < candidates_; ++i) {
      sum += probability(best(i));
      if (sum > target) break;
    }
    return best(i);
  }

  /// Cuts the candidates by top-p, then min-p; returns the mass that is left.
  double keep(double total) {
    if (params_.top_p >= 1 && params_.min_p <= 0) return total;
    double sum = 0;
    int64_t count = 0;
    while (count < candidates_) {
      if (params_.top_p < 1 && sum >= params_.top_p * total) break;
      const float p = probability(best(count));
      if (p < params_.min_p) break;  // relative to the largest, whose value is 1
      sum += p;
      ++count;
    }
    candidates_ = std::max<int64_t>(1, count);
    return sum;
  }

  const LeafKernels& leaf_;
  const SampleArgs& args_;
  const int64_t row_;
  const SamplingRow& params_;
  float* logits_;
  const int64_t vocab_;
  int32_t* order_;
  float largest_ = 0;
  int64_t candidates_ = 0;
  int64_t sorted_ = 0;
};

}  // namespace

void sample(Stream& s, const SampleArgs& args) {
  CpuStream& stream = cpu_stream(s);
  const int64_t rows = args.logits.rows(), vocab = args.logits.row_elements();
  TESSERA_CHECK(args.workspace.bytes() >= sample_workspace(rows, vocab),
                "[sample] workspace of " + std::to_string(args.workspace.bytes()) + " bytes; " +
                    std::to_string(sample_workspace(rows, vocab)) + " are needed");
  const int64_t lanes = sample_lanes(rows);
  stream.pool.parallel_for(lanes, [&](int64_t lane, int) {
    int32_t* order = static_cast<int32_t*>(args.workspace.data) + lane * vocab;
    for (int64_t row = lane; row < rows; row += lanes) Row(stream, args, row, order).run();
  });
}

}  // namespace tessera::cpu
