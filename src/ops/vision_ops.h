#pragma once

#include <array>

#include "ops/context.h"
#include "ops/weight.h"

namespace tessera {

/// uint8 tiles to embedded patches: normalise ((u / 255 - mean) / std, in f32), cut into patches, product with the
/// convolution weight, bias; row 0 of each tile is the class token; positions are added.
struct PatchEmbedArgs {
  Tensor tiles;                    ///< u8 [tiles, 3, side, side]
  std::array<float, 3> mean{};
  std::array<float, 3> std{};
  int patch = 14;
  const Weight* weight = nullptr;  ///< [hidden, 3 * patch * patch], columns ordered channel, y, x
  Tensor bias;                     ///< f32 [hidden]
  Tensor class_token;              ///< f32 [hidden]
  Tensor positions;                ///< f32 [1 + (side / patch)^2, hidden]
  Tensor patches;                  ///< workspace: activation dtype [tiles * (side / patch)^2, 3 * patch * patch]
  Tensor out;                      ///< [tiles * (1 + (side / patch)^2), hidden], residual dtype
  Tensor out_sums;                 ///< f32 [rows of out, 2 hidden / kSumColumns] or absent: as LinearArgs::out_sums
};

void patch_embed(const OpContext& ctx, const PatchEmbedArgs& args);

/// Drops the class token and folds 2 x 2 patches into one row of 4 * hidden channels (channel order: row offset outer,
/// column offset inner, then hidden), then the projector's LayerNorm. v2 keeps (row, column) order of the folded grid;
/// v1 transposes it.
struct PixelShuffleArgs {
  Tensor x;            ///< [tiles * (1 + side^2), hidden]
  int64_t tiles = 0;
  int64_t side = 0;    ///< patches along an edge (32)
  int version = 2;
  Tensor norm_weight;  ///< f32 [4 * hidden] or absent: no norm
  Tensor norm_bias;    ///< f32 [4 * hidden]
  float eps = 1e-5f;
  Tensor out;          ///< [tiles * side^2 / 4, 4 * hidden]
};

void pixel_shuffle(const OpContext& ctx, const PixelShuffleArgs& args);

}  // namespace tessera
