#include "vision/resample.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "vision/resample_kernels.h"
#include "vision/resize_axis.h"

namespace tessera {
namespace {

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A ResizeAxis in words: which words an output needs, and the weights of each word split into planes. Words
// lie at fixed places (word g holds source pixels g * group ...), so weights outside the window are zero.
struct WordAxis {
  std::vector<int32_t> first;      // [out] first word
  std::vector<int32_t> count;      // [out] words
  std::vector<size_t> weights_at;  // [out] index of the first weight in weights
  std::vector<uint32_t> weights;

  const uint32_t* weights_of(int o) const { return weights.data() + weights_at[o]; }
  int end(int o) const { return first[o] + count[o]; }
};

// `same_count` gives every output the same number of words, so that an inner loop has no branch to guess;
// `multiple` pads the outputs with repetitions of the last.
WordAxis to_words(const ResizeAxis& axis, const ResampleKernels& kernels, bool same_count, int multiple) {
  const int group = kernels.group;
  const int total = (axis.in + group - 1) / group;
  int widest = 0;
  for (const ResizeWindow& w : axis.windows)
    widest = std::max(widest, (w.first + w.count - 1) / group - w.first / group + 1);

  WordAxis out;
  std::vector<int32_t> spread;
  const int outputs = static_cast<int>(round_up(axis.out, multiple));
  for (int o = 0; o < outputs; ++o) {
    const ResizeWindow& window = axis.windows[std::min(o, axis.out - 1)];
    const int first = window.first / group;
    const int needed = (window.first + window.count - 1) / group - first + 1;
    const int count = same_count ? widest : needed;
    out.first.push_back(std::min(first, total - count));
    out.count.push_back(count);
    out.weights_at.push_back(out.weights.size());
    spread.assign(static_cast<size_t>(count) * group, 0);
    const int32_t* from = axis.weights.data() + window.weights;
    std::copy(from, from + window.count, spread.begin() + (window.first - out.first.back() * group));
    for (int i = 0; i < count; ++i) {
      const size_t at = out.weights.size();
      out.weights.resize(at + kernels.planes);
      kernels.split_weights(spread.data() + static_cast<size_t>(i) * group, out.weights.data() + at);
    }
  }
  return out;
}

// Rows of the source as the kernels read them: rows past the end are the last one (their weights are zero),
// and rows whose end is the end of the buffer are copied to where reading past them is allowed.
class SourceRows {
 public:
  explicit SourceRows(const Image& image) : image_(image) {
    const uint8_t* last = image.row(image.height - 1);
    padded_.assign(last, last + image.row_bytes());
    padded_.resize(round_up(image.row_bytes(), kResampleLanes) + kResampleLanes);
  }
  const uint8_t* row(int y) const {
    if (y >= image_.height - 1) return padded_.data();
    const size_t left = image_.rgb.size() - static_cast<size_t>(y) * image_.row_bytes();
    if (left >= padded_.size()) return image_.row(y);
    if (tail_.empty()) {  // narrow pictures: a few rows before the last run past the end, too
      tail_.assign(image_.rgb.end() - static_cast<ptrdiff_t>(left), image_.rgb.end());
      tail_.resize(left + padded_.size());
      tail_first_ = y;
    }
    return tail_.data() + static_cast<size_t>(y - tail_first_) * image_.row_bytes();
  }

 private:
  const Image& image_;
  std::vector<uint8_t> padded_;        // the last row
  mutable std::vector<uint8_t> tail_;  // rows from tail_first_ on; rows are asked for in order
  mutable int tail_first_ = 0;
};

// Word rows along y between the passes: only those that a window may still need are kept.
class WordRing {
 public:
  WordRing(int word_rows, size_t lanes)
      : lanes_(round_up(lanes, kResampleLanes) + kResampleLanes), rows_(word_rows), words_(rows_ * lanes_) {}
  uint32_t* row(int g) { return words_.data() + static_cast<size_t>(g) % rows_ * lanes_; }

 private:
  size_t lanes_;
  size_t rows_;
  std::vector<uint32_t> words_;
};

int widest_window(const WordAxis& axis) {
  return *std::max_element(axis.count.begin(), axis.count.end());
}

// The vertical pass of output y from the ring.
void vertical_row(const ResampleKernels& kernels, const WordAxis& axis, int y, WordRing& ring, size_t lanes,
                  std::vector<const uint32_t*>& scratch, uint8_t* out) {
  scratch.clear();
  for (int g = axis.first[y]; g < axis.end(y); ++g) scratch.push_back(ring.row(g));
  kernels.vertical(scratch.data(), axis.weights_of(y), axis.count[y], lanes, out);
}

// One target whose horizontal pass comes first: strips go in, finished rows come out.
class HorizontalFirst {
 public:
  HorizontalFirst(const Image& image, const ResampleTarget& target, const ResampleKernels& kernels)
      : kernels_(kernels),
        target_(target),
        x_(to_words(make_resize_axis(image.width, target.width), kernels, true, 4)),
        y_(to_words(make_resize_axis(image.height, target.height), kernels, false, 1)),
        stride_(round_up(target.width, 16)),
        ring_(widest_window(y_) + 2 * kernels.rows / kernels.group, 3 * stride_),
        out_(round_up(3 * stride_, kResampleLanes)) {}

  void strip(const uint32_t* words, int first_row) {
    const int word_rows = kernels_.rows / kernels_.group;
    const int g = first_row / kernels_.group;
    std::vector<uint32_t*>& results = results_;
    results.clear();
    for (int i = 0; i < word_rows; ++i) results.push_back(ring_.row(g + i));
    kernels_.horizontal(words, x_.first.data(), x_.weights.data(), x_.count[0],
                        static_cast<int>(x_.first.size()), stride_, results.data());
    for (; next_ < target_.height && y_.end(next_) <= g + word_rows; ++next_) {
      vertical_row(kernels_, y_, next_, ring_, 3 * stride_, scratch_, out_.data());
      target_.row(next_, out_.data(), stride_);
    }
  }

 private:
  const ResampleKernels& kernels_;
  const ResampleTarget& target_;
  WordAxis x_, y_;
  size_t stride_;
  WordRing ring_;
  std::vector<uint8_t> out_;
  std::vector<uint32_t*> results_;
  std::vector<const uint32_t*> scratch_;
  int next_ = 0;
};

// Reads the picture in strips and hands their words to every target.
void horizontal_first(const Image& image, std::vector<HorizontalFirst>& targets,
                      const ResampleKernels& kernels) {
  const SourceRows source(image);
  std::vector<const uint8_t*> rows(kernels.rows);
  std::vector<uint32_t> words(round_up(image.width, 4) / kernels.group * 3 * kernels.rows);
  for (int y = 0; y < image.height; y += kernels.rows) {
    for (int r = 0; r < kernels.rows; ++r) rows[r] = source.row(y + r);
    kernels.gather(rows.data(), image.width, words.data());
    for (HorizontalFirst& target : targets) target.strip(words.data(), y);
  }
}

// Feeds a ring with the word rows of interleaved source rows up to word row `end`.
class SourceWords {
 public:
  SourceWords(const Image& image, const ResampleKernels& kernels, int ring_rows)
      : rows_(image),
        kernels_(kernels),
        bytes_(image.row_bytes()),
        ring_(ring_rows, bytes_),
        group_(kernels.group) {}
  void read_until(int end) {
    for (; next_ < end; ++next_) {
      for (int r = 0; r < kernels_.group; ++r) group_[r] = rows_.row(next_ * kernels_.group + r);
      kernels_.interleave(group_.data(), bytes_, ring_.row(next_));
    }
  }
  WordRing& ring() { return ring_; }

 private:
  SourceRows rows_;
  const ResampleKernels& kernels_;
  size_t bytes_;
  WordRing ring_;
  std::vector<const uint8_t*> group_;
  int next_ = 0;
};

// The vertical pass first: it makes rows of the source's width, which the other order then narrows, strip by
// strip, to the target's (its own vertical pass changes nothing).
void vertical_first(const Image& image, const ResampleTarget& target, const ResampleKernels& kernels) {
  const WordAxis y_axis = to_words(make_resize_axis(image.height, target.height), kernels, false, 1);
  SourceWords source(image, kernels, widest_window(y_axis));
  Image squeezed{.width = image.width, .height = target.height};  // stands for the picture between the passes
  HorizontalFirst narrow(squeezed, target, kernels);

  const size_t row_stride = round_up(image.row_bytes(), kResampleLanes) + kResampleLanes;
  std::vector<uint8_t> strip(row_stride * kernels.rows);
  std::vector<const uint8_t*> rows(kernels.rows);
  for (int r = 0; r < kernels.rows; ++r) rows[r] = strip.data() + r * row_stride;
  std::vector<uint32_t> words(round_up(image.width, 4) / kernels.group * 3 * kernels.rows);
  std::vector<const uint32_t*> scratch;
  for (int y = 0; y < target.height; y += kernels.rows) {
    for (int r = 0; r < kernels.rows && y + r < target.height; ++r) {
      source.read_until(y_axis.end(y + r));
      vertical_row(kernels, y_axis, y + r, source.ring(), image.row_bytes(), scratch,
                   strip.data() + r * row_stride);
    }
    kernels.gather(rows.data(), image.width, words.data());
    narrow.strip(words.data(), y);
  }
}

void resample_plain(const Image& image, const ResampleTarget& target) {
  const Image resized = resize_plain(image, target.width, target.height);
  std::vector<uint8_t> planar(resized.row_bytes());
  for (int y = 0; y < resized.height; ++y) {
    const uint8_t* row = resized.row(y);
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < resized.width; ++x) planar[c * resized.width + x] = row[3 * x + c];
    target.row(y, planar.data(), resized.width);
  }
}

}  // namespace

void resample(const Image& image, std::span<const ResampleTarget> targets, ResizeIsa isa) {
  TESSERA_CHECK(image.width >= 1 && image.height >= 1 && image.rgb.size() == image.row_bytes() * image.height,
                "resample needs a whole picture");
  if (isa == ResizeIsa::kAuto) isa = best_resize_isa();
  TESSERA_CHECK(resize_isa_available(isa), "this CPU lacks the instructions asked for");
  if (isa == ResizeIsa::kPlain) {
    for (const ResampleTarget& target : targets) resample_plain(image, target);
    return;
  }
  const ResampleKernels& kernels =
      isa == ResizeIsa::kAvx512 ? *avx512_resample_kernels() : *avx2_resample_kernels();
  std::vector<HorizontalFirst> together;
  together.reserve(targets.size());
  for (const ResampleTarget& target : targets) {
    if (vertical_pass_first(image.width, image.height, target.width, target.height))
      vertical_first(image, target, kernels);
    else
      together.emplace_back(image, target, kernels);
  }
  if (!together.empty()) horizontal_first(image, together, kernels);
}

}  // namespace tessera
