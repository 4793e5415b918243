#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace tessera::testing {

/// InternVL written down as directly as possible, in double precision and without a cache, a batch or a shard: what the
/// models room is checked against where no golden exists. Reads OpenGVLab names from a TensorStore; knows the layouts
/// (fused wqkv groups, Phi-3's fused rows) on its own.
class ReferenceModel {
 public:
  using Matrix = std::vector<std::vector<double>>;  // [rows][cols]

  explicit ReferenceModel(const Checkpoint& checkpoint) : store_(checkpoint.tensors()), c_(checkpoint.config()) {}

  /// One tile u8 [3, side, side] to its rows of the language model's width.
  Matrix encode(const uint8_t* tile) const {
    Matrix x = embed_tile(tile);
    for (int64_t i = 0; i < c_.vision_layers(); ++i) vision_layer(x, i);
    return project(shuffle(x));
  }

  /// Logits of the last token. `images` replaces the rows of `image_id` in order; rope_lengths as in ops/rope.h.
  std::vector<double> logits(const std::vector<int32_t>& ids, const std::vector<int64_t>& rope_lengths,
                             int32_t image_id, const Matrix& images) const {
    const LanguageConfig& l = c_.language;
    const bool internlm = l.architecture == "InternLM2ForCausalLM";
    const std::string p = "language_model.model.";
    const Matrix table = matrix(p + (internlm ? "tok_embeddings" : "embed_tokens") + ".weight", l.vocab, l.hidden);
    Matrix x;
    size_t next = 0;
    for (const int32_t id : ids) x.push_back(id == image_id ? images.at(next++) : table.at(static_cast<size_t>(id)));
    for (int64_t i = 0; i < l.layers; ++i) language_layer(x, i, rope_lengths);
    const auto last = rms({x.back()}, vector(p + "norm.weight", l.hidden), l.norm_eps);
    const Matrix head =
        l.tied ? table : matrix(internlm ? "language_model.output.weight" : "language_model.lm_head.weight", l.vocab, l.hidden);
    return product(last, head).front();
  }

 private:
  // ---- tensors and small algebra

  std::vector<double> read(const std::string& name, std::vector<int64_t> shape) const {
    int64_t count = 1;
    for (int64_t d : shape) count *= d;
    std::vector<float> values(static_cast<size_t>(count));
    store_.open(name, shape).value()->read(0, count, DType::kF32, values.data());
    return {values.begin(), values.end()};
  }
  std::vector<double> vector(const std::string& name, int64_t size) const { return read(name, {size}); }
  Matrix matrix(const std::string& name, int64_t rows, int64_t cols) const { return fold(read(name, {rows, cols}), rows, cols); }
  static Matrix fold(const std::vector<double>& values, int64_t rows, int64_t cols) {
    Matrix m;
    for (int64_t r = 0; r < rows; ++r) m.emplace_back(values.begin() + r * cols, values.begin() + (r + 1) * cols);
    return m;
  }
  static Matrix rows_of(const Matrix& m, int64_t begin, int64_t count) {
    return {m.begin() + begin, m.begin() + begin + count};
  }
  static Matrix product(const Matrix& x, const Matrix& w) {
    Matrix y(x.size(), std::vector<double>(w.size()));
    for (size_t i = 0; i < x.size(); ++i)
      for (size_t j = 0; j < w.size(); ++j)
        for (size_t k = 0; k < x[i].size(); ++k) y[i][j] += x[i][k] * w[j][k];
    return y;
  }
  static Matrix product(const Matrix& x, const Matrix& w, const std::vector<double>& bias) {
    Matrix y = product(x, w);
    for (auto& row : y)
      for (size_t j = 0; j < row.size(); ++j) row[j] += bias[j];
    return y;
  }
  static Matrix rms(Matrix x, const std::vector<double>& weight, double eps) {
    for (auto& row : x) {
      double sum = 0;
      for (double v : row) sum += v * v;
      const double scale = 1 / std::sqrt(sum / static_cast<double>(row.size()) + eps);
      for (size_t j = 0; j < row.size(); ++j) row[j] *= scale * weight[j];
    }
    return x;
  }
  static Matrix layer_norm(Matrix x, const std::vector<double>& weight, const std::vector<double>& bias, double eps) {
    for (auto& row : x) {
      const auto n = static_cast<double>(row.size());
      double mean = 0, variance = 0;
      for (double v : row) mean += v / n;
      for (double v : row) variance += (v - mean) * (v - mean) / n;
      for (size_t j = 0; j < row.size(); ++j) row[j] = (row[j] - mean) / std::sqrt(variance + eps) * weight[j] + bias[j];
    }
    return x;
  }
  static void gelu(Matrix& x) {
    for (auto& row : x)
      for (double& v : row) v = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
  }
  static double silu(double v) { return v / (1 + std::exp(-v)); }

  // Softmax attention of one head: q [n][d] over k, v [m][d]; causal: query i sees keys 0..i.
  static Matrix attend(const Matrix& q, const Matrix& k, const Matrix& v, bool causal) {
    const double scale = 1 / std::sqrt(static_cast<double>(q[0].size()));
    Matrix out(q.size(), std::vector<double>(v[0].size()));
    for (size_t i = 0; i < q.size(); ++i) {
      const size_t keys = causal ? i + 1 : k.size();
      std::vector<double> weights(keys);
      double sum = 0;
      for (size_t j = 0; j < keys; ++j) {
        double dot = 0;
        for (size_t d = 0; d < q[i].size(); ++d) dot += q[i][d] * k[j][d];
        sum += weights[j] = std::exp(dot * scale);
      }
      for (size_t j = 0; j < keys; ++j)
        for (size_t d = 0; d < v[j].size(); ++d) out[i][d] += weights[j] / sum * v[j][d];
    }
    return out;
  }
  static Matrix head_of(const Matrix& x, int64_t head, int64_t d) {
    Matrix h;
    for (const auto& row : x) h.emplace_back(row.begin() + head * d, row.begin() + (head + 1) * d);
    return h;
  }
  static void put_head(Matrix& x, int64_t head, const Matrix& h) {
    const auto d = static_cast<int64_t>(h[0].size());
    for (size_t i = 0; i < x.size(); ++i) std::copy(h[i].begin(), h[i].end(), x[i].begin() + head * d);
  }

  // ---- vision

  Matrix embed_tile(const uint8_t* tile) const {
    const VisionConfig& v = c_.vision;
    const double mean[3] = {0.485, 0.456, 0.406}, std[3] = {0.229, 0.224, 0.225};
    const std::string p = "vision_model.embeddings.";
    const int64_t patch = v.patch_size, side = v.side(), pixels = v.image_size;
    const Matrix weight =
        fold(read(p + "patch_embedding.weight", {v.hidden, 3, patch, patch}), v.hidden, 3 * patch * patch);
    Matrix patches;
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x) {
        std::vector<double> row;
        for (int64_t ch = 0; ch < 3; ++ch)
          for (int64_t dy = 0; dy < patch; ++dy)
            for (int64_t dx = 0; dx < patch; ++dx)
              row.push_back((tile[(ch * pixels + y * patch + dy) * pixels + x * patch + dx] / 255.0 - mean[ch]) / std[ch]);
        patches.push_back(row);
      }
    Matrix x = product(patches, weight, vector(p + "patch_embedding.bias", v.hidden));
    x.insert(x.begin(), vector(p + "class_embedding", v.hidden));
    const Matrix positions = position_table();
    for (size_t i = 0; i < x.size(); ++i)
      for (size_t j = 0; j < x[i].size(); ++j) x[i][j] += positions[i][j];
    return x;
  }

  static double cubic(double t) {
    const double a = -0.75;
    t = std::abs(t);
    if (t <= 1) return (a + 2) * t * t * t - (a + 3) * t * t + 1;
    if (t < 2) return a * t * t * t - 5 * a * t * t + 8 * a * t - 4 * a;
    return 0;
  }

  Matrix position_table() const {
    const VisionConfig& v = c_.vision;
    const int64_t n = v.table_side(), side = v.side();
    const Matrix table = matrix("vision_model.embeddings.position_embedding", 1 + n * n, v.hidden);
    if (n == side) return table;
    Matrix out = {table[0]};
    const auto clamp = [&](int64_t i) { return std::min(std::max<int64_t>(i, 0), n - 1); };
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x) {
        const double cy = (y + 0.5) * n / side - 0.5, cx = (x + 0.5) * n / side - 0.5;
        std::vector<double> row(static_cast<size_t>(v.hidden));
        for (auto j = static_cast<int64_t>(std::floor(cy)) - 1; j <= std::floor(cy) + 2; ++j)
          for (auto i = static_cast<int64_t>(std::floor(cx)) - 1; i <= std::floor(cx) + 2; ++i)
            for (size_t h = 0; h < row.size(); ++h)
              row[h] += cubic(cy - j) * cubic(cx - i) * table[static_cast<size_t>(1 + clamp(j) * n + clamp(i))][h];
        out.push_back(row);
      }
    return out;
  }

  Matrix vision_norm(const Matrix& x, const std::string& name) const {
    const VisionConfig& v = c_.vision;
    const auto weight = vector(name + ".weight", v.hidden);
    if (v.norm == NormKind::kRms) return rms(x, weight, v.norm_eps);
    return layer_norm(x, weight, vector(name + ".bias", v.hidden), v.norm_eps);
  }

  void vision_layer(Matrix& x, int64_t index) const {
    const VisionConfig& v = c_.vision;
    const std::string p = "vision_model.encoder.layers." + std::to_string(index) + ".";
    const Matrix w = matrix(p + "attn.qkv.weight", 3 * v.hidden, v.hidden);
    const auto bias = v.qkv_bias ? vector(p + "attn.qkv.bias", 3 * v.hidden)
                                 : std::vector<double>(static_cast<size_t>(3 * v.hidden));
    Matrix parts[3];
    for (int64_t i = 0; i < 3; ++i)
      parts[i] = product(vision_norm(x, p + "norm1"), rows_of(w, i * v.hidden, v.hidden),
                         {bias.begin() + i * v.hidden, bias.begin() + (i + 1) * v.hidden});
    if (v.qk_norm) {
      parts[0] = rms(parts[0], vector(p + "attn.q_norm.weight", v.hidden), v.norm_eps);
      parts[1] = rms(parts[1], vector(p + "attn.k_norm.weight", v.hidden), v.norm_eps);
    }
    Matrix mixed(x.size(), std::vector<double>(static_cast<size_t>(v.hidden)));
    for (int64_t h = 0; h < v.heads; ++h)
      put_head(mixed, h,
               attend(head_of(parts[0], h, v.head_dim()), head_of(parts[1], h, v.head_dim()),
                      head_of(parts[2], h, v.head_dim()), /*causal=*/false));
    add_scaled(x, product(mixed, matrix(p + "attn.proj.weight", v.hidden, v.hidden), vector(p + "attn.proj.bias", v.hidden)),
               vector(p + "ls1", v.hidden));
    Matrix mlp = product(vision_norm(x, p + "norm2"), matrix(p + "mlp.fc1.weight", v.ffn, v.hidden),
                         vector(p + "mlp.fc1.bias", v.ffn));
    gelu(mlp);
    add_scaled(x, product(mlp, matrix(p + "mlp.fc2.weight", v.hidden, v.ffn), vector(p + "mlp.fc2.bias", v.hidden)),
               vector(p + "ls2", v.hidden));
  }

  static void add_scaled(Matrix& x, const Matrix& y, const std::vector<double>& scale) {
    for (size_t i = 0; i < x.size(); ++i)
      for (size_t j = 0; j < x[i].size(); ++j) x[i][j] += scale[j] * y[i][j];
  }

  Matrix shuffle(const Matrix& x) const {
    const int64_t side = c_.vision.side(), half = side / 2;
    Matrix out(static_cast<size_t>(half * half));
    for (int64_t i = 0; i < half; ++i)
      for (int64_t j = 0; j < half; ++j) {
        auto& row = out[static_cast<size_t>(c_.pixel_shuffle_version == 2 ? i * half + j : j * half + i)];
        for (int64_t a = 0; a < 2; ++a)
          for (int64_t b = 0; b < 2; ++b) {
            const auto& from = x[static_cast<size_t>(1 + (2 * i + a) * side + 2 * j + b)];
            row.insert(row.end(), from.begin(), from.end());
          }
      }
    return out;
  }

  Matrix project(const Matrix& x) const {
    const int64_t in = 4 * c_.vision.hidden, out = c_.language.hidden;
    Matrix y = product(layer_norm(x, vector("mlp1.0.weight", in), vector("mlp1.0.bias", in), 1e-5),
                       matrix("mlp1.1.weight", out, in), vector("mlp1.1.bias", out));
    gelu(y);
    return product(y, matrix("mlp1.3.weight", out, out), vector("mlp1.3.bias", out));
  }

  // ---- language

  std::vector<double> frequencies(int64_t length) const {
    const RopeParams& r = c_.language.rope;
    const double d = r.head_dim;
    double base = r.base;
    if (r.kind == RopeKind::kDynamicNtk && length > r.max_position)
      base *= std::pow(r.factor * static_cast<double>(length) / static_cast<double>(r.max_position) - (r.factor - 1),
                       d / (d - 2));
    std::vector<double> f;
    for (int i = 0; i < r.head_dim / 2; ++i) {
      double ext = 1;
      if (r.kind == RopeKind::kLongRope)
        ext = (length > r.original_max_position ? r.long_factors : r.short_factors)[static_cast<size_t>(i)];
      f.push_back(1 / (ext * std::pow(base, 2 * i / d)));
    }
    return f;
  }

  void rotate(Matrix& head, const std::vector<int64_t>& lengths) const {
    const double scale = c_.language.rope.kind == RopeKind::kLongRope ? c_.language.rope.attention_scale : 1;
    for (size_t t = 0; t < head.size(); ++t) {
      const auto f = frequencies(lengths[t]);
      for (size_t i = 0; i < f.size(); ++i) {
        const double angle = static_cast<double>(t) * f[i];
        const double a = head[t][i], b = head[t][i + f.size()];
        head[t][i] = scale * (a * std::cos(angle) - b * std::sin(angle));
        head[t][i + f.size()] = scale * (b * std::cos(angle) + a * std::sin(angle));
      }
    }
  }

  struct Attention {
    std::vector<Matrix> q, k, v;  // weights of each head, [head_dim][hidden]
    Matrix o;
  };

  Attention attention_weights(const std::string& p) const {
    const LanguageConfig& l = c_.language;
    const int64_t d = l.head_dim, group = l.heads / l.kv_heads;
    Attention a;
    if (l.architecture == "InternLM2ForCausalLM") {
      const Matrix w = matrix(p + "attention.wqkv.weight", (l.heads + 2 * l.kv_heads) * d, l.hidden);
      for (int64_t g = 0, row = 0; g < l.kv_heads; ++g) {
        for (int64_t i = 0; i < group; ++i, row += d) a.q.push_back(rows_of(w, row, d));
        a.k.push_back(rows_of(w, row, d)), row += d;
        a.v.push_back(rows_of(w, row, d)), row += d;
      }
      a.o = matrix(p + "attention.wo.weight", l.hidden, l.heads * d);
      return a;
    }
    Matrix q, k, v;
    if (l.architecture == "Phi3ForCausalLM") {
      const Matrix w = matrix(p + "self_attn.qkv_proj.weight", (l.heads + 2 * l.kv_heads) * d, l.hidden);
      q = rows_of(w, 0, l.heads * d);
      k = rows_of(w, l.heads * d, l.kv_heads * d);
      v = rows_of(w, (l.heads + l.kv_heads) * d, l.kv_heads * d);
    } else {
      q = matrix(p + "self_attn.q_proj.weight", l.heads * d, l.hidden);
      k = matrix(p + "self_attn.k_proj.weight", l.kv_heads * d, l.hidden);
      v = matrix(p + "self_attn.v_proj.weight", l.kv_heads * d, l.hidden);
    }
    for (int64_t h = 0; h < l.heads; ++h) a.q.push_back(rows_of(q, h * d, d));
    for (int64_t h = 0; h < l.kv_heads; ++h) a.k.push_back(rows_of(k, h * d, d)), a.v.push_back(rows_of(v, h * d, d));
    a.o = matrix(p + "self_attn.o_proj.weight", l.hidden, l.heads * d);
    return a;
  }

  // q, k or v of one head, with its slice of the bias, its norm and its rotation.
  Matrix head_rows(const Matrix& normed, const Matrix& weight, const std::string& p, char kind, int64_t head,
                   const std::vector<int64_t>& lengths) const {
    const LanguageConfig& l = c_.language;
    const int64_t d = l.head_dim;
    Matrix x = product(normed, weight);
    const std::string name = p + "self_attn." + kind;
    if (l.qkv_bias) {
      const auto bias = vector(name + "_proj.bias", (kind == 'q' ? l.heads : l.kv_heads) * d);
      for (auto& row : x)
        for (int64_t i = 0; i < d; ++i) row[static_cast<size_t>(i)] += bias[static_cast<size_t>(head * d + i)];
    }
    if (kind == 'v') return x;
    if (l.qk_norm) x = rms(x, vector(name + "_norm.weight", d), l.norm_eps);
    rotate(x, lengths);
    return x;
  }

  void language_layer(Matrix& x, int64_t index, const std::vector<int64_t>& lengths) const {
    const LanguageConfig& l = c_.language;
    const bool internlm = l.architecture == "InternLM2ForCausalLM";
    const std::string p = "language_model.model.layers." + std::to_string(index) + ".";
    const Attention a = attention_weights(p);
    const Matrix normed =
        rms(x, vector(p + (internlm ? "attention_norm" : "input_layernorm") + ".weight", l.hidden), l.norm_eps);
    Matrix mixed(x.size(), std::vector<double>(static_cast<size_t>(l.heads * l.head_dim)));
    for (int64_t h = 0; h < l.heads; ++h) {
      const int64_t g = h / (l.heads / l.kv_heads);
      put_head(mixed, h,
               attend(head_rows(normed, a.q[static_cast<size_t>(h)], p, 'q', h, lengths),
                      head_rows(normed, a.k[static_cast<size_t>(g)], p, 'k', g, lengths),
                      head_rows(normed, a.v[static_cast<size_t>(g)], p, 'v', g, lengths), /*causal=*/true));
    }
    const std::vector<double> one(static_cast<size_t>(l.hidden), 1.0);
    add_scaled(x, product(mixed, a.o), one);
    const Matrix second =
        rms(x, vector(p + (internlm ? "ffn_norm" : "post_attention_layernorm") + ".weight", l.hidden), l.norm_eps);
    add_scaled(x, l.experts > 0 ? mixture(second, p) : dense(second, p), one);
  }

  static Matrix gated(const Matrix& x, const Matrix& gate, const Matrix& up, const Matrix& down) {
    Matrix hidden = product(x, gate);
    const Matrix other = product(x, up);
    for (size_t i = 0; i < hidden.size(); ++i)
      for (size_t j = 0; j < hidden[i].size(); ++j) hidden[i][j] = silu(hidden[i][j]) * other[i][j];
    return product(hidden, down);
  }

  Matrix dense(const Matrix& x, const std::string& p) const {
    const LanguageConfig& l = c_.language;
    if (l.architecture == "Phi3ForCausalLM") {
      const Matrix both = matrix(p + "mlp.gate_up_proj.weight", 2 * l.ffn, l.hidden);
      return gated(x, rows_of(both, 0, l.ffn), rows_of(both, l.ffn, l.ffn),
                   matrix(p + "mlp.down_proj.weight", l.hidden, l.ffn));
    }
    const bool internlm = l.architecture == "InternLM2ForCausalLM";
    return gated(x, matrix(p + (internlm ? "feed_forward.w1" : "mlp.gate_proj") + ".weight", l.ffn, l.hidden),
                 matrix(p + (internlm ? "feed_forward.w3" : "mlp.up_proj") + ".weight", l.ffn, l.hidden),
                 matrix(p + (internlm ? "feed_forward.w2" : "mlp.down_proj") + ".weight", l.hidden, l.ffn));
  }

  Matrix mixture(const Matrix& x, const std::string& p) const {
    const LanguageConfig& l = c_.language;
    const Matrix scores = product(x, matrix(p + "mlp.gate.weight", l.experts, l.hidden));
    Matrix out;
    for (size_t t = 0; t < x.size(); ++t) {
      std::vector<std::pair<double, int64_t>> ranked;  // probability, expert
      double sum = 0;
      for (double s : scores[t]) sum += std::exp(s);
      for (int64_t e = 0; e < l.experts; ++e) ranked.emplace_back(-std::exp(scores[t][static_cast<size_t>(e)]) / sum, e);
      std::sort(ranked.begin(), ranked.end());
      ranked.resize(static_cast<size_t>(l.experts_per_token));
      double chosen = 0;
      for (const auto& [probability, e] : ranked) chosen -= probability;
      std::vector<double> row(static_cast<size_t>(l.hidden));
      for (const auto& [probability, e] : ranked) {
        const std::string expert = p + "mlp.experts." + std::to_string(e) + ".";
        const Matrix y = gated({x[t]}, matrix(expert + "gate_proj.weight", l.ffn, l.hidden),
                               matrix(expert + "up_proj.weight", l.ffn, l.hidden),
                               matrix(expert + "down_proj.weight", l.hidden, l.ffn));
        for (size_t j = 0; j < row.size(); ++j)
          row[j] += -probability / (l.normalise_experts ? chosen : 1) * y[0][j];
      }
      out.push_back(row);
    }
    return out;
  }

  const TensorStore& store_;
  const ModelConfig& c_;
};

}  // namespace tessera::testing
