#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/model.h"
#include "runtime/memory_plan.h"

namespace tessera {

/// Tensor parallel: a share of every layer on each of `ranks`, the vision tower as `vision` says.
std::vector<ModelShard> share_layers(int ranks, VisionPlacement vision);

/// Layer split: ranges of layers in the devices' order, as many on each as its room asks for, so that a layer with its part
/// of the KV cache has about the same everywhere. `rooms`: bytes a device that nothing but layers needs.
std::vector<ModelShard> split_layers(int64_t layers, std::span<const int64_t> rooms);

/// What a user should know of how `ranks` share the model, one sentence each: parts that can't be cut and are held, or
/// computed, whole by several ranks. Empty for one rank and for a layer split.
std::vector<std::string> layout_remarks(const ModelConfig& config, int ranks, const PlanLayout& layout);

}  // namespace tessera
