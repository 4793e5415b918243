#include "runtime/plan_layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/shards.h"

namespace tessera {
namespace {

std::string n(int64_t value) { return std::to_string(value); }

}  // namespace

std::vector<ModelShard> share_layers(int ranks, VisionPlacement vision) {
  std::vector<ModelShard> shards(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r) {
    ModelShard& shard = shards[static_cast<size_t>(r)];
    shard.rank = {r, ranks};
    shard.vision = r == 0 || vision != VisionPlacement::kFirst;
    if (vision == VisionPlacement::kSplit) shard.vision_rank = shard.rank;
  }
  return shards;
}

std::vector<ModelShard> split_layers(int64_t layers, std::span<const int64_t> rooms) {
  const auto usable = [](int64_t room) { return static_cast<double>(std::max<int64_t>(room, 1)); };
  const double all = std::accumulate(rooms.begin(), rooms.end(), 0.0, [&](double sum, int64_t room) { return sum + usable(room); });
  std::vector<ModelShard> shards(rooms.size());
  double room = 0;
  int64_t next = 0;
  for (size_t r = 0; r < shards.size(); ++r) {
    room += usable(rooms[r]);
    const auto end = static_cast<int64_t>(std::llround(static_cast<double>(layers) * room / all));
    shards[r].vision = r == 0;
    shards[r].first_layer = next;
    shards[r].layer_count = end - next;
    next = end;
  }
  return shards;
}

std::vector<std::string> layout_remarks(const ModelConfig& config, int ranks, const PlanLayout& layout) {
  std::vector<std::string> remarks;
  if (ranks == 1 || layout.layer_split) return remarks;
  const Rank rank{0, ranks};
  const LanguageConfig& l = config.language;
  const AttentionShard attention = attention_shard(l.heads, l.kv_heads, rank);
  if (!attention.split)
    remarks.push_back(n(l.heads) + " query and " + n(l.kv_heads) + " KV heads can't be dealt out to " + n(ranks) +
                      " ranks: each holds attention and the KV cache whole");
  else if (l.kv_heads < ranks)
    remarks.push_back(n(l.kv_heads) + " KV heads for " + n(ranks) + " ranks: " + n(ranks / l.kv_heads) + " ranks hold each of them");
  if (!divides(l.ffn, rank))
    remarks.push_back("an MLP of " + n(l.ffn) + " rows can't be cut into " + n(ranks) + " equal parts: each rank holds it whole");
  const VisionConfig& v = config.vision;
  if (layout.vision == VisionPlacement::kSplit && (v.qk_norm || v.heads % ranks != 0))
    remarks.push_back("the vision tower's attention is whole on each rank: " +
                      (v.qk_norm ? "its norm spans all heads" : n(v.heads) + " heads, " + n(ranks) + " ranks"));
  return remarks;
}

}  // namespace tessera
