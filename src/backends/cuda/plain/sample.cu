#include "ops/sample.h"

#include "backends/cuda/plain/plain.h"
#include "backends/cuda/plain/portable.h"

namespace tessera::cuda::plain {
namespace {

// One block a row. Nothing is sorted: a threshold in descending order (top-k by count, top-p and the draw by mass) is
// found digit by digit over the logits' bits. Masses are integers, so that their sums do not depend on the order in
// which threads add, and a draw is the same in every run.
constexpr int kThreads = 1024;
constexpr int kDigitBits = 8;
constexpr int kBins = 1 << kDigitBits;
constexpr float kMassUnit = 1099511627776.0f;  ///< 2^40: 2^18 ids of mass 1 stay below 2^64

struct SampleParams {
  float* logits;
  int64_t stride, vocab, valid_ids;
  const SamplingRow* rows;
  const LogitEdit* edits;
  const int* masks;
  int64_t mask_stride;
  float* originals;  ///< [rows, vocab]: unedited logits, by place of the edit
  int* out_ids;
  float* out_logprobs;
  int* out_top_ids;
  float* out_top_logprobs;
  int max_top_logprobs;
};

struct Shared {
  unsigned long long bins[kBins];
  unsigned long long best;
  unsigned long long left;  ///< what remains of a target below the chosen bins
  int digit;
  float scratch[64];
};

/// Bits that order as the floats do.
TESSERA_DEVICE uint32_t ordered(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/// Larger for a larger logit, then for a lower id.
TESSERA_DEVICE unsigned long long rank_key(float v, int64_t id) {
  return static_cast<unsigned long long>(ordered(v)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

TESSERA_DEVICE int64_t id_of(unsigned long long key) {
  return static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(key));
}

TESSERA_DEVICE unsigned long long mass_of(float v, float best, float inverse_temperature) {
  return static_cast<unsigned long long>(expf((v - best) * inverse_temperature) * kMassUnit);
}

/// The largest key below `under`, over ids [0, count). All threads take part; the same in all of them.
TESSERA_DEVICE unsigned long long best_below(const float* logits, int64_t count, unsigned long long under, Shared& s) {
  if (thread_id() == 0) s.best = 0;
  barrier();
  unsigned long long mine = 0;
  for (int64_t i = thread_id(); i < count; i += kThreads) {
    const unsigned long long key = rank_key(logits[i], i);
    if (key < under && key > mine) mine = key;
  }
  if (mine) shared_max(&s.best, mine);
  barrier();
  const unsigned long long best = s.best;
  barrier();
  return best;
}

struct Row {
  const float* logits;
  int64_t count;
  float best, inverse_temperature;
  uint32_t floor;  ///< ordered bits below which ids are out
};

struct Found {
  uint32_t bits;             ///< ordered bits of the value at which the target is reached
  unsigned long long left;   ///< of the target, within the ids of just this value
};

/// Descends over the values of `row` until their weights (1 an id, or its mass) exceed `target`.
TESSERA_DEVICE Found descend(const Row& row, bool by_mass, unsigned long long target, Shared& s) {
  uint32_t prefix = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = thread_id(); i < kBins; i += kThreads) s.bins[i] = 0;
    barrier();
    for (int64_t i = thread_id(); i < row.count; i += kThreads) {
      const float v = row.logits[i];
      const uint32_t bits = ordered(v);
      if (bits < row.floor || (shift < 32 - kDigitBits && bits >> (shift + kDigitBits) != prefix)) continue;
      const unsigned long long weight = by_mass ? mass_of(v, row.best, row.inverse_temperature) : 1ull;
      if (weight) shared_add(&s.bins[bits >> shift & (kBins - 1)], weight);
    }
    barrier();
    if (thread_id() == 0) {
      int digit = kBins - 1, last = -1;
      unsigned long long left = target;
      for (; digit >= 0; --digit) {
        if (s.bins[digit] == 0) continue;
        last = digit;
        if (left < s.bins[digit]) break;
        left -= s.bins[digit];
      }
      if (digit < 0) {  // the target lies past the end (rounding): the last value that has any weight
        digit = last < 0 ? 0 : last;
        left = last < 0 ? 0 : s.bins[last] - 1;
      }
      s.digit = digit;
      s.left = left;
    }
    barrier();
    prefix = prefix << kDigitBits | static_cast<uint32_t>(s.digit);
    target = s.left;
    barrier();
  }
  return {prefix, target};
}

TESSERA_DEVICE unsigned long long total_mass(const Row& row, Shared& s) {
  if (thread_id() == 0) s.left = 0;
  barrier();
  unsigned long long mine = 0;
  for (int64_t i = thread_id(); i < row.count; i += kThreads)
    if (ordered(row.logits[i]) >= row.floor) mine += mass_of(row.logits[i], row.best, row.inverse_temperature);
  shared_add(&s.left, mine);
  barrier();
  const unsigned long long total = s.left;
  barrier();
  return total;
}

/// The n-th id (from 0, ascending) whose value has these bits.
TESSERA_DEVICE int64_t nth_of_value(const Row& row, uint32_t bits, unsigned long long n, Shared& s) {
  unsigned long long under = ~0ull;
  // Equal values are rare; they are visited one after another.
  for (;; --n) {
    if (thread_id() == 0) s.best = 0;
    barrier();
    unsigned long long mine = 0;
    for (int64_t i = thread_id(); i < row.count; i += kThreads) {
      const unsigned long long key = rank_key(row.logits[i], i);
      if (ordered(row.logits[i]) == bits && key < under && key > mine) mine = key;
    }
    if (mine) shared_max(&s.best, mine);
    barrier();
    const unsigned long long found = s.best;
    barrier();
    if (found == 0) return id_of(under);
    under = found;
    if (n == 0) return id_of(found);
  }
}

/// Order of the filters as in ops/sample.h: temperature, top-k, top-p, min-p, one draw.
TESSERA_DEVICE int64_t draw(const SamplingRow& r, Row row, Shared& s) {
  // Ids among equals at a threshold are kept or dropped by their order; `cut` counts those of the lowest value kept.
  unsigned long long cut = ~0ull;
  if (r.top_k > 0 && r.top_k < row.count) {
    const Found k = descend(row, false, static_cast<unsigned long long>(r.top_k) - 1, s);
    row.floor = k.bits > row.floor ? k.bits : row.floor;
    cut = k.left + 1;
  }
  const float floor_value = std::bit_cast<float>(row.floor & 0x80000000u ? row.floor & 0x7fffffffu : ~row.floor);
  const unsigned long long at_floor = mass_of(floor_value, row.best, row.inverse_temperature);
  unsigned long long total = total_mass(row, s);
  if (cut != ~0ull) {  // equals of the k-th value beyond the k-th place carry no mass
    Row equals = row;
    unsigned long long count = 0;
    if (thread_id() == 0) s.left = 0;
    barrier();
    for (int64_t i = thread_id(); i < row.count; i += kThreads) count += ordered(equals.logits[i]) == row.floor ? 1 : 0;
    shared_add(&s.left, count);
    barrier();
    total -= (s.left - cut) * at_floor;
    barrier();
  }
  unsigned long long kept = total;
  if (r.top_p < 1.0f) {
    const auto wanted = static_cast<unsigned long long>(static_cast<double>(total) * static_cast<double>(r.top_p));
    const Found p = descend(row, true, wanted > 0 ? wanted - 1 : 0, s);
    const float value = std::bit_cast<float>(p.bits & 0x80000000u ? p.bits & 0x7fffffffu : ~p.bits);
    const unsigned long long each = mass_of(value, row.best, row.inverse_temperature);
    const unsigned long long whole = wanted > 0 ? wanted - 1 - p.left : 0;  // mass above this value
    kept = whole + (each ? (p.left / each + 1) * each : 0);
    if (kept > total) kept = total;
  }
  if (r.min_p > 0.0f) {  // relative to the largest probability: mass >= min_p * 1
    Row high = row;
    const float bound = row.best + logf(r.min_p) / row.inverse_temperature;
    const uint32_t bits = ordered(bound);
    if (bits > high.floor) {
      high.floor = bits;
      const unsigned long long mass = total_mass(high, s);
      if (mass < kept) kept = mass;
    }
  }
  const auto target = static_cast<unsigned long long>(static_cast<double>(uniform(r.seed, r.draw)) *
                                                      static_cast<double>(kept));
  const Found at = descend(row, true, target, s);
  const float value = std::bit_cast<float>(at.bits & 0x80000000u ? at.bits & 0x7fffffffu : ~at.bits);
  const unsigned long long each = mass_of(value, row.best, row.inverse_temperature);
  return nth_of_value(row, at.bits, each ? at.left / each : 0, s);
}

TESSERA_DEVICE void apply_edits(const SampleParams& p, const SamplingRow& r, float* logits, float* originals) {
  for (int e = r.edits_begin + thread_id(); e < r.edits_end; e += kThreads) {
    const LogitEdit edit = p.edits[e];
    const float v = logits[edit.token];
    originals[e - r.edits_begin] = v;
    logits[edit.token] = (v > 0 ? v / edit.repetition : v * edit.repetition) - edit.subtract;
  }
  barrier();
}

TESSERA_DEVICE void apply_mask(const SampleParams& p, const SamplingRow& r, float* logits) {
  if (r.mask_row < 0) return;
  const int* mask = p.masks + r.mask_row * p.mask_stride;
  for (int64_t i = thread_id(); i < p.valid_ids; i += kThreads)
    if ((static_cast<uint32_t>(mask[i / 32]) >> (i % 32) & 1u) == 0) logits[i] = -INFINITY;
  barrier();
}

TESSERA_KERNEL(kThreads) sample_kernel(SampleParams p) {
  Shared& s = *static_cast<Shared*>(dynamic_shared());
  const int64_t row_index = block_x();
  const SamplingRow& r = p.rows[row_index];
  float* logits = p.logits + row_index * p.stride;
  float* originals = p.originals + row_index * p.vocab;
  const bool drawn = r.temperature > 0;

  float best = -INFINITY;
  for (int64_t i = thread_id(); i < p.vocab; i += kThreads) best = logits[i] > best ? logits[i] : best;
  best = block_max(best, s.scratch);
  float sum = 0;
  for (int64_t i = thread_id(); i < p.vocab; i += kThreads) sum += expf(logits[i] - best);
  const float log_sum = best + logf(block_sum(sum, s.scratch));

  unsigned long long under = ~0ull;
  for (int n = 0; n < r.top_logprobs && n < p.valid_ids; ++n) {
    under = best_below(logits, p.valid_ids, under, s);
    if (thread_id() == 0) {
      p.out_top_ids[row_index * kMaxTopLogprobs + n] = static_cast<int>(id_of(under));
      p.out_top_logprobs[row_index * kMaxTopLogprobs + n] = logits[id_of(under)] - log_sum;
    }
  }
  barrier();
  apply_edits(p, r, logits, originals);
  apply_mask(p, r, logits);

  const unsigned long long top = best_below(logits, p.valid_ids, ~0ull, s);
  int64_t chosen = id_of(top);
  if (drawn) {
    const Row row{logits, p.valid_ids, logits[chosen], 1.0f / r.temperature, ordered(-INFINITY) + 1};
    chosen = draw(r, row, s);
  }
  if (thread_id() != 0) return;
  // A mask only ever hides other ids, so the chosen one's own logit differs from the unedited one by its edit alone.
  float unedited = logits[chosen];
  for (int e = r.edits_begin; e < r.edits_end; ++e)
    if (p.edits[e].token == chosen) unedited = originals[e - r.edits_begin];
  p.out_ids[row_index] = static_cast<int>(chosen);
  p.out_logprobs[row_index] = unedited - log_sum;
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) {
  const SampleParams p{.logits = args.logits.ptr<float>(),
                       .stride = args.logits.row_stride,
                       .vocab = args.logits.row_elements(),
                       .valid_ids = args.valid_ids,
                       .rows = args.params.ptr<SamplingRow>(),
                       .edits = args.edits.ptr<LogitEdit>(),
                       .masks = args.masks.ptr<int>(),
                       .mask_stride = args.masks.row_stride,
                       .originals = args.workspace.ptr<float>(),
                       .out_ids = args.out_ids.ptr<int>(),
                       .out_logprobs = args.out_logprobs.ptr<float>(),
                       .out_top_ids = args.out_top_ids.ptr<int>(),
                       .out_top_logprobs = args.out_top_logprobs.ptr<float>(),
                       .max_top_logprobs = args.max_top_logprobs};
  launch(stream, "plain_sample", {static_cast<unsigned>(args.logits.rows())}, kThreads, sizeof(Shared), sample_kernel,
         p);
}

}  // namespace tessera::cuda::plain
